from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SpeculationMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SPECULATION_MODE_UNSPECIFIED: _ClassVar[SpeculationMode]
    SPECULATION_MODE_AUTO: _ClassVar[SpeculationMode]
    SPECULATION_MODE_OFF: _ClassVar[SpeculationMode]
    SPECULATION_MODE_ON: _ClassVar[SpeculationMode]

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]
    FINISH_REASON_STOP: _ClassVar[FinishReason]

class TokenOrigin(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TOKEN_ORIGIN_UNSPECIFIED: _ClassVar[TokenOrigin]
    TOKEN_ORIGIN_ACCEPTED: _ClassVar[TokenOrigin]
    TOKEN_ORIGIN_RECOVERED: _ClassVar[TokenOrigin]
    TOKEN_ORIGIN_BONUS: _ClassVar[TokenOrigin]

class InfillDrafter(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    INFILL_DRAFTER_UNSPECIFIED: _ClassVar[InfillDrafter]
    INFILL_DRAFTER_SELF: _ClassVar[InfillDrafter]
    INFILL_DRAFTER_NGRAM: _ClassVar[InfillDrafter]
    INFILL_DRAFTER_NONE: _ClassVar[InfillDrafter]
SPECULATION_MODE_UNSPECIFIED: SpeculationMode
SPECULATION_MODE_AUTO: SpeculationMode
SPECULATION_MODE_OFF: SpeculationMode
SPECULATION_MODE_ON: SpeculationMode
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_LENGTH: FinishReason
FINISH_REASON_STOP: FinishReason
TOKEN_ORIGIN_UNSPECIFIED: TokenOrigin
TOKEN_ORIGIN_ACCEPTED: TokenOrigin
TOKEN_ORIGIN_RECOVERED: TokenOrigin
TOKEN_ORIGIN_BONUS: TokenOrigin
INFILL_DRAFTER_UNSPECIFIED: InfillDrafter
INFILL_DRAFTER_SELF: InfillDrafter
INFILL_DRAFTER_NGRAM: InfillDrafter
INFILL_DRAFTER_NONE: InfillDrafter

class GenerateRequest(_message.Message):
    __slots__ = ("text", "token_ids", "sampling", "speculation", "timeout_ms", "constraint")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    SPECULATION_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    CONSTRAINT_FIELD_NUMBER: _ClassVar[int]
    text: str
    token_ids: TokenIds
    sampling: SamplingParameters
    speculation: SpeculationPolicy
    timeout_ms: int
    constraint: OutputConstraint
    def __init__(self, text: _Optional[str] = ..., token_ids: _Optional[_Union[TokenIds, _Mapping]] = ..., sampling: _Optional[_Union[SamplingParameters, _Mapping]] = ..., speculation: _Optional[_Union[SpeculationPolicy, _Mapping]] = ..., timeout_ms: _Optional[int] = ..., constraint: _Optional[_Union[OutputConstraint, _Mapping]] = ...) -> None: ...

class OutputConstraint(_message.Message):
    __slots__ = ("json_schema", "regex", "choice")
    class Choice(_message.Message):
        __slots__ = ("choices",)
        CHOICES_FIELD_NUMBER: _ClassVar[int]
        choices: _containers.RepeatedScalarFieldContainer[str]
        def __init__(self, choices: _Optional[_Iterable[str]] = ...) -> None: ...
    JSON_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    REGEX_FIELD_NUMBER: _ClassVar[int]
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    json_schema: str
    regex: str
    choice: OutputConstraint.Choice
    def __init__(self, json_schema: _Optional[str] = ..., regex: _Optional[str] = ..., choice: _Optional[_Union[OutputConstraint.Choice, _Mapping]] = ...) -> None: ...

class TokenIds(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Iterable[int]] = ...) -> None: ...

class SamplingParameters(_message.Message):
    __slots__ = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "stop_token_ids", "presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias", "logprobs", "ignore_eos")
    class LogitBiasEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: float
        def __init__(self, key: _Optional[int] = ..., value: _Optional[float] = ...) -> None: ...
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    stop_token_ids: _containers.RepeatedScalarFieldContainer[int]
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    logit_bias: _containers.ScalarMap[int, float]
    logprobs: int
    ignore_eos: bool
    def __init__(self, max_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., top_k: _Optional[int] = ..., min_p: _Optional[float] = ..., seed: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ..., stop_token_ids: _Optional[_Iterable[int]] = ..., presence_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., logit_bias: _Optional[_Mapping[int, float]] = ..., logprobs: _Optional[int] = ..., ignore_eos: _Optional[bool] = ...) -> None: ...

class SpeculationPolicy(_message.Message):
    __slots__ = ("mode", "drafters", "max_draft_tokens", "rule", "branches", "max_draft_nodes", "reference", "tenant", "private")
    MODE_FIELD_NUMBER: _ClassVar[int]
    DRAFTERS_FIELD_NUMBER: _ClassVar[int]
    MAX_DRAFT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    BRANCHES_FIELD_NUMBER: _ClassVar[int]
    MAX_DRAFT_NODES_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    PRIVATE_FIELD_NUMBER: _ClassVar[int]
    mode: SpeculationMode
    drafters: _containers.RepeatedScalarFieldContainer[str]
    max_draft_tokens: int
    rule: str
    branches: int
    max_draft_nodes: int
    reference: str
    tenant: str
    private: bool
    def __init__(self, mode: _Optional[_Union[SpeculationMode, str]] = ..., drafters: _Optional[_Iterable[str]] = ..., max_draft_tokens: _Optional[int] = ..., rule: _Optional[str] = ..., branches: _Optional[int] = ..., max_draft_nodes: _Optional[int] = ..., reference: _Optional[str] = ..., tenant: _Optional[str] = ..., private: _Optional[bool] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("text", "token_ids", "finish_reason", "usage", "logprobs", "seed", "request_id")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    text: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    finish_reason: FinishReason
    usage: Usage
    logprobs: _containers.RepeatedCompositeFieldContainer[TokenLogprobs]
    seed: int
    request_id: str
    def __init__(self, text: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., finish_reason: _Optional[_Union[FinishReason, str]] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., logprobs: _Optional[_Iterable[_Union[TokenLogprobs, _Mapping]]] = ..., seed: _Optional[int] = ..., request_id: _Optional[str] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("prompt_tokens", "emitted_tokens", "rounds", "drafted_tokens", "accepted_tokens", "drafters")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    EMITTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    DRAFTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DRAFTERS_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    emitted_tokens: int
    rounds: int
    drafted_tokens: int
    accepted_tokens: int
    drafters: _containers.RepeatedCompositeFieldContainer[DrafterUsage]
    def __init__(self, prompt_tokens: _Optional[int] = ..., emitted_tokens: _Optional[int] = ..., rounds: _Optional[int] = ..., drafted_tokens: _Optional[int] = ..., accepted_tokens: _Optional[int] = ..., drafters: _Optional[_Iterable[_Union[DrafterUsage, _Mapping]]] = ...) -> None: ...

class DrafterUsage(_message.Message):
    __slots__ = ("drafter", "drafted_tokens", "accepted_tokens")
    DRAFTER_FIELD_NUMBER: _ClassVar[int]
    DRAFTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    drafter: str
    drafted_tokens: int
    accepted_tokens: int
    def __init__(self, drafter: _Optional[str] = ..., drafted_tokens: _Optional[int] = ..., accepted_tokens: _Optional[int] = ...) -> None: ...

class TokenLogprobs(_message.Message):
    __slots__ = ("logprob", "raw_logprob", "top")
    class Candidate(_message.Message):
        __slots__ = ("token_id", "logprob", "raw_logprob")
        TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
        LOGPROB_FIELD_NUMBER: _ClassVar[int]
        RAW_LOGPROB_FIELD_NUMBER: _ClassVar[int]
        token_id: int
        logprob: float
        raw_logprob: float
        def __init__(self, token_id: _Optional[int] = ..., logprob: _Optional[float] = ..., raw_logprob: _Optional[float] = ...) -> None: ...
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    RAW_LOGPROB_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    logprob: float
    raw_logprob: float
    top: _containers.RepeatedCompositeFieldContainer[TokenLogprobs.Candidate]
    def __init__(self, logprob: _Optional[float] = ..., raw_logprob: _Optional[float] = ..., top: _Optional[_Iterable[_Union[TokenLogprobs.Candidate, _Mapping]]] = ...) -> None: ...

class StreamGenerateRequest(_message.Message):
    __slots__ = ("generate",)
    GENERATE_FIELD_NUMBER: _ClassVar[int]
    generate: GenerateRequest
    def __init__(self, generate: _Optional[_Union[GenerateRequest, _Mapping]] = ...) -> None: ...

class StreamGenerateResponse(_message.Message):
    __slots__ = ("started", "chunk", "finished")
    STARTED_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    started: GenerationStarted
    chunk: GenerationChunk
    finished: GenerationFinished
    def __init__(self, started: _Optional[_Union[GenerationStarted, _Mapping]] = ..., chunk: _Optional[_Union[GenerationChunk, _Mapping]] = ..., finished: _Optional[_Union[GenerationFinished, _Mapping]] = ...) -> None: ...

class GenerationStarted(_message.Message):
    __slots__ = ("request_id", "prompt_tokens", "seed")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    prompt_tokens: int
    seed: int
    def __init__(self, request_id: _Optional[str] = ..., prompt_tokens: _Optional[int] = ..., seed: _Optional[int] = ...) -> None: ...

class EmittedToken(_message.Message):
    __slots__ = ("id", "origin", "drafter", "logprobs", "text_end")
    ID_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    DRAFTER_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    TEXT_END_FIELD_NUMBER: _ClassVar[int]
    id: int
    origin: TokenOrigin
    drafter: str
    logprobs: TokenLogprobs
    text_end: int
    def __init__(self, id: _Optional[int] = ..., origin: _Optional[_Union[TokenOrigin, str]] = ..., drafter: _Optional[str] = ..., logprobs: _Optional[_Union[TokenLogprobs, _Mapping]] = ..., text_end: _Optional[int] = ...) -> None: ...

class Round(_message.Message):
    __slots__ = ("wall_ms", "forward_ms", "draft_ms", "nodes", "depth", "batch")
    WALL_MS_FIELD_NUMBER: _ClassVar[int]
    FORWARD_MS_FIELD_NUMBER: _ClassVar[int]
    DRAFT_MS_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    DEPTH_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    wall_ms: float
    forward_ms: float
    draft_ms: float
    nodes: int
    depth: int
    batch: int
    def __init__(self, wall_ms: _Optional[float] = ..., forward_ms: _Optional[float] = ..., draft_ms: _Optional[float] = ..., nodes: _Optional[int] = ..., depth: _Optional[int] = ..., batch: _Optional[int] = ...) -> None: ...

class GenerationChunk(_message.Message):
    __slots__ = ("tokens", "text", "round")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedCompositeFieldContainer[EmittedToken]
    text: str
    round: Round
    def __init__(self, tokens: _Optional[_Iterable[_Union[EmittedToken, _Mapping]]] = ..., text: _Optional[str] = ..., round: _Optional[_Union[Round, _Mapping]] = ...) -> None: ...

class GenerationFinished(_message.Message):
    __slots__ = ("finish_reason", "usage")
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    finish_reason: FinishReason
    usage: Usage
    def __init__(self, finish_reason: _Optional[_Union[FinishReason, str]] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ...) -> None: ...

class InfillRequest(_message.Message):
    __slots__ = ("segments", "parameters", "drafting", "timeout_ms")
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    DRAFTING_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    segments: _containers.RepeatedCompositeFieldContainer[InfillSegment]
    parameters: InfillParameters
    drafting: InfillDrafting
    timeout_ms: int
    def __init__(self, segments: _Optional[_Iterable[_Union[InfillSegment, _Mapping]]] = ..., parameters: _Optional[_Union[InfillParameters, _Mapping]] = ..., drafting: _Optional[_Union[InfillDrafting, _Mapping]] = ..., timeout_ms: _Optional[int] = ...) -> None: ...

class InfillSegment(_message.Message):
    __slots__ = ("text", "token_ids", "gap")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    GAP_FIELD_NUMBER: _ClassVar[int]
    text: str
    token_ids: TokenIds
    gap: Gap
    def __init__(self, text: _Optional[str] = ..., token_ids: _Optional[_Union[TokenIds, _Mapping]] = ..., gap: _Optional[_Union[Gap, _Mapping]] = ...) -> None: ...

class Gap(_message.Message):
    __slots__ = ("tokens", "max_tokens")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    tokens: int
    max_tokens: int
    def __init__(self, tokens: _Optional[int] = ..., max_tokens: _Optional[int] = ...) -> None: ...

class InfillParameters(_message.Message):
    __slots__ = ("temperature", "top_p", "top_k", "seed")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_p: float
    top_k: int
    seed: int
    def __init__(self, temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., top_k: _Optional[int] = ..., seed: _Optional[int] = ...) -> None: ...

class InfillDrafting(_message.Message):
    __slots__ = ("drafter", "max_draft_tokens")
    DRAFTER_FIELD_NUMBER: _ClassVar[int]
    MAX_DRAFT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    drafter: InfillDrafter
    max_draft_tokens: int
    def __init__(self, drafter: _Optional[_Union[InfillDrafter, str]] = ..., max_draft_tokens: _Optional[int] = ...) -> None: ...

class InfillResponse(_message.Message):
    __slots__ = ("segments", "usage", "seed", "request_id")
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    segments: _containers.RepeatedCompositeFieldContainer[FilledSegment]
    usage: InfillUsage
    seed: int
    request_id: str
    def __init__(self, segments: _Optional[_Iterable[_Union[FilledSegment, _Mapping]]] = ..., usage: _Optional[_Union[InfillUsage, _Mapping]] = ..., seed: _Optional[int] = ..., request_id: _Optional[str] = ...) -> None: ...

class FilledSegment(_message.Message):
    __slots__ = ("index", "filled", "text", "token_ids")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    FILLED_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    index: int
    filled: bool
    text: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, index: _Optional[int] = ..., filled: _Optional[bool] = ..., text: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class InfillUsage(_message.Message):
    __slots__ = ("given_tokens", "written_tokens", "model_passes", "drafted_tokens", "accepted_tokens")
    GIVEN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    WRITTEN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MODEL_PASSES_FIELD_NUMBER: _ClassVar[int]
    DRAFTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    given_tokens: int
    written_tokens: int
    model_passes: int
    drafted_tokens: int
    accepted_tokens: int
    def __init__(self, given_tokens: _Optional[int] = ..., written_tokens: _Optional[int] = ..., model_passes: _Optional[int] = ..., drafted_tokens: _Optional[int] = ..., accepted_tokens: _Optional[int] = ...) -> None: ...

class StreamInfillRequest(_message.Message):
    __slots__ = ("infill",)
    INFILL_FIELD_NUMBER: _ClassVar[int]
    infill: InfillRequest
    def __init__(self, infill: _Optional[_Union[InfillRequest, _Mapping]] = ...) -> None: ...

class StreamInfillResponse(_message.Message):
    __slots__ = ("started", "chunk", "finished")
    STARTED_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    started: InfillStarted
    chunk: InfillChunk
    finished: InfillFinished
    def __init__(self, started: _Optional[_Union[InfillStarted, _Mapping]] = ..., chunk: _Optional[_Union[InfillChunk, _Mapping]] = ..., finished: _Optional[_Union[InfillFinished, _Mapping]] = ...) -> None: ...

class InfillStarted(_message.Message):
    __slots__ = ("request_id", "given_tokens", "seed")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    GIVEN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    given_tokens: int
    seed: int
    def __init__(self, request_id: _Optional[str] = ..., given_tokens: _Optional[int] = ..., seed: _Optional[int] = ...) -> None: ...

class InfillChunk(_message.Message):
    __slots__ = ("tokens", "segments")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedCompositeFieldContainer[FilledToken]
    segments: _containers.RepeatedCompositeFieldContainer[FilledSegment]
    def __init__(self, tokens: _Optional[_Iterable[_Union[FilledToken, _Mapping]]] = ..., segments: _Optional[_Iterable[_Union[FilledSegment, _Mapping]]] = ...) -> None: ...

class FilledToken(_message.Message):
    __slots__ = ("segment", "offset", "id", "stop")
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    segment: int
    offset: int
    id: int
    stop: bool
    def __init__(self, segment: _Optional[int] = ..., offset: _Optional[int] = ..., id: _Optional[int] = ..., stop: _Optional[bool] = ...) -> None: ...

class InfillFinished(_message.Message):
    __slots__ = ("usage",)
    USAGE_FIELD_NUMBER: _ClassVar[int]
    usage: InfillUsage
    def __init__(self, usage: _Optional[_Union[InfillUsage, _Mapping]] = ...) -> None: ...

class GetServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServerInfoResponse(_message.Message):
    __slots__ = ("version", "model", "vocab_size", "context_length", "eos_token_ids", "drafters", "rules", "default_rule", "max_sessions", "max_waiting", "stats", "infill")
    class StatsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    EOS_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    DRAFTERS_FIELD_NUMBER: _ClassVar[int]
    RULES_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_RULE_FIELD_NUMBER: _ClassVar[int]
    MAX_SESSIONS_FIELD_NUMBER: _ClassVar[int]
    MAX_WAITING_FIELD_NUMBER: _ClassVar[int]
    STATS_FIELD_NUMBER: _ClassVar[int]
    INFILL_FIELD_NUMBER: _ClassVar[int]
    version: str
    model: str
    vocab_size: int
    context_length: int
    eos_token_ids: _containers.RepeatedScalarFieldContainer[int]
    drafters: _containers.RepeatedCompositeFieldContainer[DrafterInfo]
    rules: _containers.RepeatedScalarFieldContainer[str]
    default_rule: str
    max_sessions: int
    max_waiting: int
    stats: _containers.ScalarMap[str, float]
    infill: InfillInfo
    def __init__(self, version: _Optional[str] = ..., model: _Optional[str] = ..., vocab_size: _Optional[int] = ..., context_length: _Optional[int] = ..., eos_token_ids: _Optional[_Iterable[int]] = ..., drafters: _Optional[_Iterable[_Union[DrafterInfo, _Mapping]]] = ..., rules: _Optional[_Iterable[str]] = ..., default_rule: _Optional[str] = ..., max_sessions: _Optional[int] = ..., max_waiting: _Optional[int] = ..., stats: _Optional[_Mapping[str, float]] = ..., infill: _Optional[_Union[InfillInfo, _Mapping]] = ...) -> None: ...

class InfillInfo(_message.Message):
    __slots__ = ("model", "context_length", "open_gaps")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    OPEN_GAPS_FIELD_NUMBER: _ClassVar[int]
    model: str
    context_length: int
    open_gaps: bool
    def __init__(self, model: _Optional[str] = ..., context_length: _Optional[int] = ..., open_gaps: _Optional[bool] = ...) -> None: ...

class DrafterInfo(_message.Message):
    __slots__ = ("name", "kind", "max_draft_tokens")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    MAX_DRAFT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: str
    max_draft_tokens: int
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[str] = ..., max_draft_tokens: _Optional[int] = ...) -> None: ...
