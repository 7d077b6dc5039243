"""The public API's messages <-> types. Protobuf stops here."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from specserve.errors import InvalidRequest
from specserve.types import (
    Chunk,
    Constraint,
    DrafterUsage,
    EmittedToken,
    Event,
    Finished,
    FinishReason,
    GenerationRequest,
    Origin,
    Round,
    Sampling,
    Speculation,
    SpeculationMode,
    Started,
    TokenLogprobs,
    Usage,
)
from specserve.v1 import generation_pb2 as pb

MAX_REQUEST_BYTES = 3 << 20
_M = TypeVar("_M", bound=Message)

_OPTIONAL = (
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logprobs",
    "ignore_eos",
)
_OPTIONAL_POLICY = ("max_draft_tokens", "rule", "branches", "max_draft_nodes")
_MODES = {
    pb.SPECULATION_MODE_UNSPECIFIED: SpeculationMode.AUTO,
    pb.SPECULATION_MODE_AUTO: SpeculationMode.AUTO,
    pb.SPECULATION_MODE_OFF: SpeculationMode.OFF,
    pb.SPECULATION_MODE_ON: SpeculationMode.ON,
}
_MODE_NUMBERS = {mode: number for number, mode in _MODES.items() if number}
_REASONS = {
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishReason.STOP: pb.FINISH_REASON_STOP,
}
_REASON_OF = {number: reason for reason, number in _REASONS.items()}
_ORIGINS = {
    Origin.ACCEPTED: pb.TOKEN_ORIGIN_ACCEPTED,
    Origin.RECOVERED: pb.TOKEN_ORIGIN_RECOVERED,
    Origin.BONUS: pb.TOKEN_ORIGIN_BONUS,
}
_ORIGIN_OF = {number: origin for origin, number in _ORIGINS.items()}


def parse_generate(raw: bytes | int, request_id: str) -> GenerationRequest:
    """A serialized GenerateRequest -> types. Bounds are checked later, in one place, for every transport.

    Args:
        raw: the message, or only its size in bytes when that is above MAX_REQUEST_BYTES.
    Raises:
        InvalidRequest: too large, or no such message (a string that is not UTF-8, for one).
    """
    return request_of(parse(pb.GenerateRequest, raw), request_id)


def parse_stream_generate(raw: bytes | int, request_id: str) -> GenerationRequest:
    """A serialized StreamGenerateRequest -> types; as `parse_generate`."""
    return request_of(parse(pb.StreamGenerateRequest, raw).generate, request_id)


def parse(kind: type[_M], raw: bytes | int) -> _M:
    """A serialized message of this kind. Raises InvalidRequest as `parse_generate` does."""
    if isinstance(raw, int):
        raise InvalidRequest("request", f"must be at most {MAX_REQUEST_BYTES} bytes", raw)
    try:
        return kind.FromString(raw)
    except DecodeError as error:
        bound = f"must be a {kind.DESCRIPTOR.full_name} whose strings are valid UTF-8"
        raise InvalidRequest("request", bound, raw[:40]) from error


def request_of(message: pb.GenerateRequest, request_id: str) -> GenerationRequest:
    """Unset fields take the defaults of `types`; an unset seed is drawn here, so that it can be reported."""
    which = message.WhichOneof("prompt")
    if which is None:
        raise InvalidRequest("prompt", "must be set: text or token_ids", None)
    prompt = message.text if which == "text" else tuple(message.token_ids.ids)
    if message.speculation.mode not in _MODES:
        raise InvalidRequest("speculation.mode", "must be AUTO, OFF or ON", message.speculation.mode)
    policy = message.speculation
    return GenerationRequest(
        prompt=prompt,
        sampling=_sampling(message.sampling),
        speculation=Speculation(
            mode=_MODES[policy.mode],
            drafters=tuple(policy.drafters),
            reference=policy.reference,
            tenant=policy.tenant,
            private=policy.private,
            **{name: getattr(policy, name) for name in _OPTIONAL_POLICY if policy.HasField(name)},
        ),
        timeout_s=message.timeout_ms / 1000 if message.HasField("timeout_ms") else None,
        request_id=request_id,
        constraint=_constraint(message.constraint) if message.HasField("constraint") else None,
    )


def _constraint(message: pb.OutputConstraint) -> Constraint:
    kind = message.WhichOneof("kind")
    if kind == "choice":
        return Constraint(choice=tuple(message.choice.choices))
    return Constraint(**{kind: getattr(message, kind)}) if kind else Constraint()


def _put_constraint(out: pb.OutputConstraint, constraint: Constraint) -> None:
    if len(constraint.kinds) != 1:  # the wire would keep the last
        raise InvalidRequest("constraint", "must be exactly one of json_schema, regex, choice", constraint.kinds)
    if constraint.choice is not None:
        out.choice.choices.extend(constraint.choice)
        out.choice.SetInParent()
    else:
        name = constraint.kinds[0]
        setattr(out, name, getattr(constraint, name))


def _sampling(message: pb.SamplingParameters) -> Sampling:
    given = {name: getattr(message, name) for name in _OPTIONAL if message.HasField(name)}
    given.setdefault("seed", secrets.randbits(63))
    return Sampling(
        **given,
        stop=tuple(message.stop),
        stop_token_ids=tuple(message.stop_token_ids),
        logit_bias=dict(message.logit_bias),
    )


def message_of(request: GenerationRequest) -> pb.GenerateRequest:
    """Inverse of `request_of`, for clients. Values equal to the defaults stay unset, the seed always goes along."""
    message = pb.GenerateRequest()
    if isinstance(request.prompt, str):
        message.text = request.prompt
    else:
        message.token_ids.ids.extend(request.prompt)
    sampling, default = request.sampling, Sampling()
    for name in _OPTIONAL:
        value = getattr(sampling, name)
        if value is not None and (name == "seed" or value != getattr(default, name)):
            setattr(message.sampling, name, value)
    message.sampling.stop.extend(sampling.stop)
    message.sampling.stop_token_ids.extend(sampling.stop_token_ids)
    for token, bias in sampling.logit_bias.items():
        message.sampling.logit_bias[token] = bias
    policy = message.speculation
    policy.mode = _MODE_NUMBERS[request.speculation.mode]
    policy.drafters.extend(request.speculation.drafters)
    policy.reference, policy.tenant = request.speculation.reference, request.speculation.tenant
    policy.private = request.speculation.private
    for name in _OPTIONAL_POLICY:
        value = getattr(request.speculation, name)
        if value is not None:
            setattr(policy, name, value)
    if request.timeout_s is not None:
        message.timeout_ms = max(1, math.ceil(request.timeout_s * 1000))
    if request.constraint is not None:
        _put_constraint(message.constraint, request.constraint)
    return message


def encode_event(event: Event, seed: int) -> pb.StreamGenerateResponse:
    """One event of a stream."""
    message = pb.StreamGenerateResponse()
    if isinstance(event, Started):
        message.started.request_id = event.request_id
        message.started.prompt_tokens = event.prompt_tokens
        message.started.seed = seed
    elif isinstance(event, Chunk):
        message.chunk.text = event.text
        for token in event.tokens:
            out = message.chunk.tokens.add(
                id=token.id, origin=_ORIGINS[token.origin], drafter=token.drafter, text_end=token.text_end
            )
            if token.logprobs is not None:
                _put_logprobs(out.logprobs, token.logprobs)
        if event.round is not None:
            _put_round(message.chunk.round, event.round)
    else:
        message.finished.finish_reason = _REASONS[event.reason]
        _put_usage(message.finished.usage, event.usage)
    return message


def decode_event(message: pb.StreamGenerateResponse) -> Event:
    """Inverse of `encode_event`."""
    if message.HasField("started"):
        return Started(message.started.request_id, message.started.prompt_tokens)
    if message.HasField("chunk"):
        tokens = tuple(
            EmittedToken(
                t.id,
                _ORIGIN_OF[t.origin],
                t.drafter,
                _logprobs(t.logprobs) if t.HasField("logprobs") else None,
                t.text_end,
            )
            for t in message.chunk.tokens
        )
        round_ = _round(message.chunk.round) if message.chunk.HasField("round") else None
        return Chunk(tokens, message.chunk.text, round_)
    return Finished(_REASON_OF[message.finished.finish_reason], usage_of(message.finished.usage))


def encode_response(events: Iterable[Event], seed: int) -> pb.GenerateResponse:
    """The whole answer from the events of one generation."""
    response, texts = pb.GenerateResponse(seed=seed), []
    for event in events:
        if isinstance(event, Started):
            response.request_id = event.request_id
        elif isinstance(event, Chunk):
            texts.append(event.text)
            for token in event.tokens:
                response.token_ids.append(token.id)
                if token.logprobs is not None:
                    _put_logprobs(response.logprobs.add(), token.logprobs)
        else:
            response.finish_reason = _REASONS[event.reason]
            _put_usage(response.usage, event.usage)
    response.text = "".join(texts)
    return response


def _put_round(out: pb.Round, round_: Round) -> None:
    out.wall_ms, out.forward_ms = round_.wall_s * 1e3, round_.forward_s * 1e3
    out.draft_ms, out.nodes, out.depth, out.batch = round_.draft_s * 1e3, round_.nodes, round_.depth, round_.batch


def _round(message: pb.Round) -> Round:
    return Round(
        message.wall_ms / 1e3,
        message.forward_ms / 1e3,
        message.draft_ms / 1e3,
        message.nodes,
        message.depth,
        message.batch,
    )


def usage_of(message: pb.Usage) -> Usage:
    """Counts of one request."""
    return Usage(
        prompt_tokens=message.prompt_tokens,
        emitted_tokens=message.emitted_tokens,
        rounds=message.rounds,
        drafters={d.drafter: DrafterUsage(d.drafted_tokens, d.accepted_tokens) for d in message.drafters},
    )


def _put_usage(out: pb.Usage, usage: Usage) -> None:
    out.prompt_tokens, out.emitted_tokens, out.rounds = usage.prompt_tokens, usage.emitted_tokens, usage.rounds
    out.drafted_tokens, out.accepted_tokens = usage.drafted_tokens, usage.accepted_tokens
    for name, drafter in usage.drafters.items():
        out.drafters.add(drafter=name, drafted_tokens=drafter.drafted, accepted_tokens=drafter.accepted)


def _put_logprobs(out: pb.TokenLogprobs, logprobs: TokenLogprobs) -> None:
    out.logprob, out.raw_logprob = logprobs.logprob, logprobs.raw
    for token, processed, raw in logprobs.top:
        out.top.add(token_id=token, logprob=processed, raw_logprob=raw)


def _logprobs(message: pb.TokenLogprobs) -> TokenLogprobs:
    top = tuple((c.token_id, c.logprob, c.raw_logprob) for c in message.top)
    return TokenLogprobs(message.logprob, message.raw_logprob, top)
