"""What a verdict carries for the round after it: the next draft, made in this process, and hidden states."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from specserve.errors import InvalidRequest
from specserve.types import Draft, Features, SessionSpec, Verdict

log = logging.getLogger(__name__)

LAST = -1  # the layer that the unembedding reads; the only one there is yet


@dataclass(frozen=True, slots=True)
class Wish:
    """One session's part of a draft: committed tokens, the last of which the target has not read; how deep."""

    session: int
    spec: SessionSpec
    tokens: Sequence[int]
    depth: int


class HiddenDrafter(Protocol):
    """Drafts from the target's hidden states."""

    most: int
    """Deepest draft."""

    def draft(self, wishes: Sequence[Wish], hidden: Tensor) -> list[Draft]:
        """One draft each; hidden [N, d] is of the token before each session's last."""

    def forget(self, session: int) -> None:
        """The session has ended."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A verdict just given, its session's tokens now, and the row of `hidden` that its token was drawn after."""

    verdict: Verdict
    spec: SessionSpec
    tokens: Sequence[int]
    depth: int
    row: int


class Ahead:
    """Adds to verdicts what was asked for. Without a drafter or hidden states nothing is added: that costs speed alone.

    Args:
        context_len: of the target; no draft goes beyond it.
    """

    def __init__(self, drafter: HiddenDrafter | None, context_len: int) -> None:
        self._drafter, self._context = drafter, context_len
        self.counts = {"draft_s": 0.0, "tokens_ahead": 0.0, "feature_bytes": 0.0}

    def check(self, spec: SessionSpec) -> None:
        """Raises InvalidRequest when the session wants layers that are not kept."""
        if set(spec.features) - {LAST}:
            raise InvalidRequest("features", f"must be {LAST}, the last layer, or none", spec.features)

    def add(self, asked: Sequence[Asked], hidden: Tensor | None) -> list[Verdict]:
        """The verdicts, with drafts and features."""
        if hidden is None:
            return [one.verdict for one in asked]
        drafts, seconds = self._drafts(asked, hidden)
        verdicts = []
        for one in asked:
            features = self._features(one, hidden) if one.spec.features else None
            draft = drafts.get(one.verdict.session, Draft())
            verdicts.append(replace(one.verdict, draft=draft, draft_s=seconds, features=features))
        return verdicts

    def forget(self, session: int) -> None:
        """The session has ended."""
        if self._drafter is not None:
            self._drafter.forget(session)

    def _drafts(self, asked: Sequence[Asked], hidden: Tensor) -> tuple[dict[int, Draft], float]:
        wishes, rows = [], []
        for one in asked:
            depth = min(one.depth, one.spec.max_len - len(one.tokens) - 1, self._context - len(one.tokens))
            if self._drafter is not None and depth > 0:
                wishes.append(Wish(one.verdict.session, one.spec, one.tokens, depth))
                rows.append(one.row)
        if not wishes or self._drafter is None:
            return {}, 0.0
        start = time.perf_counter()
        try:
            drafts = self._drafter.draft(wishes, hidden[torch.tensor(rows, device=hidden.device)])
        except Exception:  # whatever it is, it may cost speed and nothing else
            log.exception("the verifier's own drafter broke; it drafts no more")
            self._drafter = None
            return {}, 0.0
        seconds = time.perf_counter() - start
        self.counts["draft_s"] += seconds
        self.counts["tokens_ahead"] += sum(map(len, drafts))
        return {wish.session: draft for wish, draft in zip(wishes, drafts, strict=True)}, seconds

    def _features(self, one: Asked, hidden: Tensor) -> Features:
        data = packed(hidden[one.row])
        self.counts["feature_bytes"] += len(data)
        return Features(len(one.tokens) - 2, (LAST,), data)


def packed(hidden: Tensor) -> bytes:
    """Numbers as bfloat16, little-endian."""
    words = hidden.detach().to(torch.bfloat16).cpu().contiguous().view(torch.int16).numpy()
    return bytes(words.astype("<i2").tobytes())


def unpacked(data: bytes, width: int) -> Tensor:
    """What was packed: [rows, width] in bfloat16. Raises InvalidRequest when it is no whole number of rows."""
    if not data or len(data) % (2 * width):
        raise InvalidRequest("features.data", f"must hold rows of {width} bfloat16 numbers", f"{len(data)} bytes")
    words = np.frombuffer(data, dtype="<i2").astype(np.int16)
    return torch.from_numpy(words).view(torch.bfloat16).view(-1, width)
