"""Bounds of an infill request. What breaks one is refused before anything has started, and names its segment."""

from __future__ import annotations

import math
from collections.abc import Sequence

from specserve.errors import InvalidRequest
from specserve.serving.bounds import check_ids, check_int, check_number, check_size
from specserve.serving.validate import MAX_PROMPT_BYTES, MAX_TEMPERATURE
from specserve.types import INFILL_DRAFTERS, Gap, InfillFacts, InfillRequest, Piece, Sampling

MAX_SEGMENTS = 1024
MAX_DRAFT_TOKENS = 64


def check_infill(request: InfillRequest, facts: InfillFacts) -> None:
    """All that can be said before text is tokenised. Raises InvalidRequest."""
    segments = request.segments
    if not 1 <= len(segments) <= MAX_SEGMENTS:
        raise InvalidRequest("segments", f"must hold 1 to {MAX_SEGMENTS} segments", len(segments))
    if not any(isinstance(segment, Gap) for segment in segments):
        raise InvalidRequest("segments", "must hold at least one gap", f"{len(segments)} given segments")
    check_size("segments", [segment for segment in segments if isinstance(segment, str)], MAX_PROMPT_BYTES)
    for i, segment in enumerate(segments):
        if isinstance(segment, Gap):
            _check_gap(f"segments[{i}].gap", segment, facts)
        elif not segment:
            raise InvalidRequest(f"segments[{i}]", "must hold at least one token", segment)
        elif not isinstance(segment, str):
            check_ids(f"segments[{i}].token_ids", segment, facts.vocab_size)
    _check_sampling(request.sampling)
    if request.drafter not in INFILL_DRAFTERS:
        raise InvalidRequest("drafting.drafter", f"must be one of {', '.join(INFILL_DRAFTERS)}", request.drafter)
    check_int("drafting.max_draft_tokens", request.draft_tokens, 2, MAX_DRAFT_TOKENS)
    if request.timeout_s is not None and not 0 < request.timeout_s < math.inf:
        raise InvalidRequest("timeout_ms", "must be a finite number above 0", request.timeout_s * 1000)


def check_pieces(pieces: Sequence[Piece], facts: InfillFacts) -> None:
    """The tokenised segments. Raises InvalidRequest."""
    room = facts.context_len
    if not any(isinstance(piece, tuple) and piece for piece in pieces):
        room -= 1  # a query must see something: then it is the model's first token
        if facts.bos_token_id is None:
            raise InvalidRequest("segments", "must hold given tokens: this model has no first token of its own", None)
    total = 0
    for i, piece in enumerate(pieces):
        total += piece.tokens if isinstance(piece, Gap) else len(piece)
        if total > room:
            bound = f"must end within {room} tokens, all segments before it and gaps at their full size included"
            raise InvalidRequest(f"segments[{i}]", bound, total)
        banned = (facts.mask_token_id, facts.stop_token_id)
        if isinstance(piece, tuple) and (bad := [token for token in piece if token in banned]):
            raise InvalidRequest(f"segments[{i}]", "must not hold the model's mask or stop token", bad[0])


def _check_gap(field: str, gap: Gap, facts: InfillFacts) -> None:
    size = f"{field}.{'tokens' if gap.exact else 'max_tokens'}"
    check_int(size, gap.tokens, 1, facts.context_len)
    if not gap.exact and facts.stop_token_id is None:
        raise InvalidRequest(size, "must be unset (set tokens): this model has no stop token", gap.tokens)


def _check_sampling(sampling: Sampling) -> None:
    check_number("parameters.temperature", sampling.temperature, 0, MAX_TEMPERATURE)
    check_number("parameters.top_p", sampling.top_p, 0, 1, above=True)
    check_int("parameters.top_k", sampling.top_k, 0, None)
    check_int("parameters.seed", sampling.seed, 0, 2**63 - 1)
