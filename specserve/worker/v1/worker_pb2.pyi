from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WorkRequest(_message.Message):
    __slots__ = ("verify", "propose", "close", "fill")
    VERIFY_FIELD_NUMBER: _ClassVar[int]
    PROPOSE_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    FILL_FIELD_NUMBER: _ClassVar[int]
    verify: _containers.RepeatedCompositeFieldContainer[Verify]
    propose: _containers.RepeatedCompositeFieldContainer[Propose]
    close: _containers.RepeatedScalarFieldContainer[int]
    fill: _containers.RepeatedCompositeFieldContainer[Fill]
    def __init__(self, verify: _Optional[_Iterable[_Union[Verify, _Mapping]]] = ..., propose: _Optional[_Iterable[_Union[Propose, _Mapping]]] = ..., close: _Optional[_Iterable[int]] = ..., fill: _Optional[_Iterable[_Union[Fill, _Mapping]]] = ...) -> None: ...

class WorkResponse(_message.Message):
    __slots__ = ("verdicts", "proposals", "lost", "failed", "filled")
    VERDICTS_FIELD_NUMBER: _ClassVar[int]
    PROPOSALS_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    FILLED_FIELD_NUMBER: _ClassVar[int]
    verdicts: _containers.RepeatedCompositeFieldContainer[Verdict]
    proposals: _containers.RepeatedCompositeFieldContainer[Proposal]
    lost: _containers.RepeatedCompositeFieldContainer[SessionLost]
    failed: _containers.RepeatedCompositeFieldContainer[Failed]
    filled: _containers.RepeatedCompositeFieldContainer[Filled]
    def __init__(self, verdicts: _Optional[_Iterable[_Union[Verdict, _Mapping]]] = ..., proposals: _Optional[_Iterable[_Union[Proposal, _Mapping]]] = ..., lost: _Optional[_Iterable[_Union[SessionLost, _Mapping]]] = ..., failed: _Optional[_Iterable[_Union[Failed, _Mapping]]] = ..., filled: _Optional[_Iterable[_Union[Filled, _Mapping]]] = ...) -> None: ...

class SessionSpec(_message.Message):
    __slots__ = ("prompt_len", "max_len", "rule", "temperature", "top_p", "top_k", "min_p", "seed", "presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias", "logprobs", "branches", "max_draft_nodes", "constraint", "features")
    class LogitBiasEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: float
        def __init__(self, key: _Optional[int] = ..., value: _Optional[float] = ...) -> None: ...
    PROMPT_LEN_FIELD_NUMBER: _ClassVar[int]
    MAX_LEN_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    BRANCHES_FIELD_NUMBER: _ClassVar[int]
    MAX_DRAFT_NODES_FIELD_NUMBER: _ClassVar[int]
    CONSTRAINT_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    prompt_len: int
    max_len: int
    rule: str
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    logit_bias: _containers.ScalarMap[int, float]
    logprobs: int
    branches: int
    max_draft_nodes: int
    constraint: Constraint
    features: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, prompt_len: _Optional[int] = ..., max_len: _Optional[int] = ..., rule: _Optional[str] = ..., temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., top_k: _Optional[int] = ..., min_p: _Optional[float] = ..., seed: _Optional[int] = ..., presence_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., logit_bias: _Optional[_Mapping[int, float]] = ..., logprobs: _Optional[int] = ..., branches: _Optional[int] = ..., max_draft_nodes: _Optional[int] = ..., constraint: _Optional[_Union[Constraint, _Mapping]] = ..., features: _Optional[_Iterable[int]] = ...) -> None: ...

class Features(_message.Message):
    __slots__ = ("first", "layers", "data")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    first: int
    layers: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, first: _Optional[int] = ..., layers: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...

class Constraint(_message.Message):
    __slots__ = ("json_schema", "regex", "choice")
    JSON_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    REGEX_FIELD_NUMBER: _ClassVar[int]
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    json_schema: str
    regex: str
    choice: Choice
    def __init__(self, json_schema: _Optional[str] = ..., regex: _Optional[str] = ..., choice: _Optional[_Union[Choice, _Mapping]] = ...) -> None: ...

class Choice(_message.Message):
    __slots__ = ("choices",)
    CHOICES_FIELD_NUMBER: _ClassVar[int]
    choices: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, choices: _Optional[_Iterable[str]] = ...) -> None: ...

class Draft(_message.Message):
    __slots__ = ("tokens", "parents", "laws", "chains")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    PARENTS_FIELD_NUMBER: _ClassVar[int]
    LAWS_FIELD_NUMBER: _ClassVar[int]
    CHAINS_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedScalarFieldContainer[int]
    parents: _containers.RepeatedScalarFieldContainer[int]
    laws: _containers.RepeatedCompositeFieldContainer[SparseLaw]
    chains: _containers.RepeatedCompositeFieldContainer[Path]
    def __init__(self, tokens: _Optional[_Iterable[int]] = ..., parents: _Optional[_Iterable[int]] = ..., laws: _Optional[_Iterable[_Union[SparseLaw, _Mapping]]] = ..., chains: _Optional[_Iterable[_Union[Path, _Mapping]]] = ...) -> None: ...

class Path(_message.Message):
    __slots__ = ("nodes",)
    NODES_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, nodes: _Optional[_Iterable[int]] = ...) -> None: ...

class SparseLaw(_message.Message):
    __slots__ = ("ids", "probs")
    IDS_FIELD_NUMBER: _ClassVar[int]
    PROBS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    probs: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, ids: _Optional[_Iterable[int]] = ..., probs: _Optional[_Iterable[float]] = ...) -> None: ...

class Verify(_message.Message):
    __slots__ = ("session", "base_len", "tokens", "draft", "spec", "next_tokens")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    BASE_LEN_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    DRAFT_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    NEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    session: int
    base_len: int
    tokens: _containers.RepeatedScalarFieldContainer[int]
    draft: Draft
    spec: SessionSpec
    next_tokens: int
    def __init__(self, session: _Optional[int] = ..., base_len: _Optional[int] = ..., tokens: _Optional[_Iterable[int]] = ..., draft: _Optional[_Union[Draft, _Mapping]] = ..., spec: _Optional[_Union[SessionSpec, _Mapping]] = ..., next_tokens: _Optional[int] = ...) -> None: ...

class Propose(_message.Message):
    __slots__ = ("session", "base_len", "tokens", "max_tokens", "spec", "max_nodes", "price", "context", "features")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    BASE_LEN_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    MAX_NODES_FIELD_NUMBER: _ClassVar[int]
    PRICE_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    session: int
    base_len: int
    tokens: _containers.RepeatedScalarFieldContainer[int]
    max_tokens: int
    spec: SessionSpec
    max_nodes: int
    price: float
    context: DraftContext
    features: Features
    def __init__(self, session: _Optional[int] = ..., base_len: _Optional[int] = ..., tokens: _Optional[_Iterable[int]] = ..., max_tokens: _Optional[int] = ..., spec: _Optional[_Union[SessionSpec, _Mapping]] = ..., max_nodes: _Optional[int] = ..., price: _Optional[float] = ..., context: _Optional[_Union[DraftContext, _Mapping]] = ..., features: _Optional[_Union[Features, _Mapping]] = ...) -> None: ...

class DraftContext(_message.Message):
    __slots__ = ("reference", "tenant", "private")
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    PRIVATE_FIELD_NUMBER: _ClassVar[int]
    reference: _containers.RepeatedScalarFieldContainer[int]
    tenant: str
    private: bool
    def __init__(self, reference: _Optional[_Iterable[int]] = ..., tenant: _Optional[str] = ..., private: _Optional[bool] = ...) -> None: ...

class Fill(_message.Message):
    __slots__ = ("session", "base_len", "tokens", "spec")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    BASE_LEN_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    session: int
    base_len: int
    tokens: _containers.RepeatedScalarFieldContainer[int]
    spec: InfillSpec
    def __init__(self, session: _Optional[int] = ..., base_len: _Optional[int] = ..., tokens: _Optional[_Iterable[int]] = ..., spec: _Optional[_Union[InfillSpec, _Mapping]] = ...) -> None: ...

class InfillSpec(_message.Message):
    __slots__ = ("pieces", "temperature", "top_p", "top_k", "seed", "drafter", "draft_tokens")
    PIECES_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    DRAFTER_FIELD_NUMBER: _ClassVar[int]
    DRAFT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    pieces: _containers.RepeatedCompositeFieldContainer[Piece]
    temperature: float
    top_p: float
    top_k: int
    seed: int
    drafter: str
    draft_tokens: int
    def __init__(self, pieces: _Optional[_Iterable[_Union[Piece, _Mapping]]] = ..., temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., top_k: _Optional[int] = ..., seed: _Optional[int] = ..., drafter: _Optional[str] = ..., draft_tokens: _Optional[int] = ...) -> None: ...

class Piece(_message.Message):
    __slots__ = ("given", "gap", "may_stop")
    GIVEN_FIELD_NUMBER: _ClassVar[int]
    GAP_FIELD_NUMBER: _ClassVar[int]
    MAY_STOP_FIELD_NUMBER: _ClassVar[int]
    given: _containers.RepeatedScalarFieldContainer[int]
    gap: int
    may_stop: bool
    def __init__(self, given: _Optional[_Iterable[int]] = ..., gap: _Optional[int] = ..., may_stop: _Optional[bool] = ...) -> None: ...

class Filled(_message.Message):
    __slots__ = ("session", "at", "tokens", "passes", "drafted", "accepted", "forward_s", "batch")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    PASSES_FIELD_NUMBER: _ClassVar[int]
    DRAFTED_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    FORWARD_S_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    session: int
    at: int
    tokens: _containers.RepeatedScalarFieldContainer[int]
    passes: int
    drafted: int
    accepted: int
    forward_s: float
    batch: int
    def __init__(self, session: _Optional[int] = ..., at: _Optional[int] = ..., tokens: _Optional[_Iterable[int]] = ..., passes: _Optional[int] = ..., drafted: _Optional[int] = ..., accepted: _Optional[int] = ..., forward_s: _Optional[float] = ..., batch: _Optional[int] = ...) -> None: ...

class Verdict(_message.Message):
    __slots__ = ("session", "at", "accepted", "token", "logprobs", "forward_s", "batch", "positions", "draft", "draft_s", "features")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    FORWARD_S_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    DRAFT_FIELD_NUMBER: _ClassVar[int]
    DRAFT_S_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    session: int
    at: int
    accepted: _containers.RepeatedScalarFieldContainer[int]
    token: int
    logprobs: _containers.RepeatedCompositeFieldContainer[TokenLogprobs]
    forward_s: float
    batch: int
    positions: int
    draft: Draft
    draft_s: float
    features: Features
    def __init__(self, session: _Optional[int] = ..., at: _Optional[int] = ..., accepted: _Optional[_Iterable[int]] = ..., token: _Optional[int] = ..., logprobs: _Optional[_Iterable[_Union[TokenLogprobs, _Mapping]]] = ..., forward_s: _Optional[float] = ..., batch: _Optional[int] = ..., positions: _Optional[int] = ..., draft: _Optional[_Union[Draft, _Mapping]] = ..., draft_s: _Optional[float] = ..., features: _Optional[_Union[Features, _Mapping]] = ...) -> None: ...

class TokenLogprobs(_message.Message):
    __slots__ = ("logprob", "raw", "top_ids", "top_logprobs", "top_raw")
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    RAW_FIELD_NUMBER: _ClassVar[int]
    TOP_IDS_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    TOP_RAW_FIELD_NUMBER: _ClassVar[int]
    logprob: float
    raw: float
    top_ids: _containers.RepeatedScalarFieldContainer[int]
    top_logprobs: _containers.RepeatedScalarFieldContainer[float]
    top_raw: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, logprob: _Optional[float] = ..., raw: _Optional[float] = ..., top_ids: _Optional[_Iterable[int]] = ..., top_logprobs: _Optional[_Iterable[float]] = ..., top_raw: _Optional[_Iterable[float]] = ...) -> None: ...

class Proposal(_message.Message):
    __slots__ = ("session", "at", "draft", "compute_s", "measured")
    class MeasuredEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    SESSION_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    DRAFT_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_S_FIELD_NUMBER: _ClassVar[int]
    MEASURED_FIELD_NUMBER: _ClassVar[int]
    session: int
    at: int
    draft: Draft
    compute_s: float
    measured: _containers.ScalarMap[str, float]
    def __init__(self, session: _Optional[int] = ..., at: _Optional[int] = ..., draft: _Optional[_Union[Draft, _Mapping]] = ..., compute_s: _Optional[float] = ..., measured: _Optional[_Mapping[str, float]] = ...) -> None: ...

class SessionLost(_message.Message):
    __slots__ = ("session", "held")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    session: int
    held: int
    def __init__(self, session: _Optional[int] = ..., held: _Optional[int] = ...) -> None: ...

class Failed(_message.Message):
    __slots__ = ("session", "kind", "message")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    session: int
    kind: str
    message: str
    def __init__(self, session: _Optional[int] = ..., kind: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...
