"""The messages of `Infill` and `StreamInfill` <-> types; as `convert` does for generation."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable

from specserve.errors import InvalidRequest
from specserve.transport.convert import parse
from specserve.types import (
    FilledSegment,
    FilledToken,
    Gap,
    InfillChunk,
    InfillEvent,
    InfillFinished,
    InfillRequest,
    InfillStarted,
    InfillUsage,
    Sampling,
    TokenIds,
)
from specserve.v1 import generation_pb2 as pb

_DRAFTERS = {
    pb.INFILL_DRAFTER_UNSPECIFIED: "self",
    pb.INFILL_DRAFTER_SELF: "self",
    pb.INFILL_DRAFTER_NGRAM: "ngram",
    pb.INFILL_DRAFTER_NONE: "none",
}
_DRAFTER_NUMBERS = {name: number for number, name in _DRAFTERS.items() if number}
_PARAMETERS = ("temperature", "top_p", "top_k", "seed")


def parse_infill(raw: bytes | int, request_id: str) -> InfillRequest:
    """A serialized InfillRequest -> types; see `convert.parse_generate`."""
    return infill_request_of(parse(pb.InfillRequest, raw), request_id)


def parse_stream_infill(raw: bytes | int, request_id: str) -> InfillRequest:
    """A serialized StreamInfillRequest -> types."""
    return infill_request_of(parse(pb.StreamInfillRequest, raw).infill, request_id)


def infill_request_of(message: pb.InfillRequest, request_id: str) -> InfillRequest:
    """Unset fields take the defaults of `types`; an unset seed is drawn here, so that it can be reported."""
    drafting, given = message.drafting, message.parameters
    if drafting.drafter not in _DRAFTERS:
        raise InvalidRequest("drafting.drafter", "must be SELF, NGRAM or NONE", drafting.drafter)
    parameters = {name: getattr(given, name) for name in _PARAMETERS if given.HasField(name)}
    parameters = {"temperature": 1.0, "seed": secrets.randbits(63), **parameters}
    return InfillRequest(
        segments=tuple(_segment(i, segment) for i, segment in enumerate(message.segments)),
        sampling=Sampling(**parameters),
        drafter=_DRAFTERS[drafting.drafter],
        timeout_s=message.timeout_ms / 1000 if message.HasField("timeout_ms") else None,
        request_id=request_id,
        **({"draft_tokens": drafting.max_draft_tokens} if drafting.HasField("max_draft_tokens") else {}),
    )


def _segment(index: int, message: pb.InfillSegment) -> str | TokenIds | Gap:
    kind = message.WhichOneof("kind")
    if kind == "text":
        return str(message.text)
    if kind == "token_ids":
        return tuple(message.token_ids.ids)
    size = message.gap.WhichOneof("size") if kind == "gap" else None
    if kind is None or (kind == "gap" and size is None):
        field = f"segments[{index}]" + (".gap" if kind else "")
        bound = "must have a size: tokens or max_tokens" if kind else "must be set: text, token_ids or gap"
        raise InvalidRequest(field, bound, None)
    return Gap(getattr(message.gap, str(size)), exact=size == "tokens")


def infill_message_of(request: InfillRequest) -> pb.InfillRequest:
    """Inverse of `infill_request_of`, for clients."""
    message = pb.InfillRequest()
    for segment in request.segments:
        out = message.segments.add()
        if isinstance(segment, str):
            out.text = segment
        elif isinstance(segment, Gap):
            setattr(out.gap, "tokens" if segment.exact else "max_tokens", segment.tokens)
        else:
            out.token_ids.ids.extend(segment)
            out.token_ids.SetInParent()
    for name in _PARAMETERS:
        setattr(message.parameters, name, getattr(request.sampling, name))
    message.drafting.drafter = _DRAFTER_NUMBERS[request.drafter]
    message.drafting.max_draft_tokens = request.draft_tokens
    if request.timeout_s is not None:
        message.timeout_ms = max(1, math.ceil(request.timeout_s * 1000))
    return message


def encode_infill_event(event: InfillEvent, seed: int) -> pb.StreamInfillResponse:
    """One event of a stream."""
    message = pb.StreamInfillResponse()
    if isinstance(event, InfillStarted):
        message.started.request_id, message.started.given_tokens = event.request_id, event.given_tokens
        message.started.seed = seed
    elif isinstance(event, InfillChunk):
        for token in event.tokens:
            message.chunk.tokens.add(segment=token.segment, offset=token.offset, id=token.id, stop=token.stop)
        for segment in event.segments:
            _put_segment(message.chunk.segments.add(), segment)
    else:
        _put_usage(message.finished.usage, event.usage)
        message.finished.SetInParent()
    return message


def decode_infill_event(message: pb.StreamInfillResponse) -> InfillEvent:
    """Inverse of `encode_infill_event`, but for the segments of the last event, which a stream has told already."""
    if message.HasField("started"):
        return InfillStarted(message.started.request_id, message.started.given_tokens)
    if message.HasField("chunk"):
        tokens = tuple(FilledToken(t.segment, t.offset, t.id, t.stop) for t in message.chunk.tokens)
        return InfillChunk(tokens, tuple(map(_segment_of, message.chunk.segments)))
    return InfillFinished((), _usage_of(message.finished.usage))


def encode_infill_response(events: Iterable[InfillEvent], seed: int) -> pb.InfillResponse:
    """The whole answer from the events of one filling."""
    response = pb.InfillResponse(seed=seed)
    for event in events:
        if isinstance(event, InfillStarted):
            response.request_id = event.request_id
        elif isinstance(event, InfillFinished):
            _put_usage(response.usage, event.usage)
            for segment in event.segments:
                _put_segment(response.segments.add(), segment)
    return response


def decode_infill_response(response: pb.InfillResponse) -> InfillFinished:
    """The segments and what they took."""
    return InfillFinished(tuple(map(_segment_of, response.segments)), _usage_of(response.usage))


def _put_segment(out: pb.FilledSegment, segment: FilledSegment) -> None:
    out.index, out.filled, out.text = segment.index, segment.filled, segment.text
    out.token_ids.extend(segment.token_ids)


def _segment_of(message: pb.FilledSegment) -> FilledSegment:
    return FilledSegment(message.index, message.filled, message.text, tuple(message.token_ids))


def _put_usage(out: pb.InfillUsage, usage: InfillUsage) -> None:
    for name in InfillUsage.__slots__:
        setattr(out, name, getattr(usage, name))
    out.SetInParent()


def _usage_of(message: pb.InfillUsage) -> InfillUsage:
    return InfillUsage(**{name: getattr(message, name) for name in InfillUsage.__slots__})
