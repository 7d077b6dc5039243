"""Rule `coupled`: emit y = argmax (log p + g), walked down the draft while some child equals it.

Exact for any drafts at all, because y does not look at them; the output is a function of (target, prompt, seed).
At temperature 0 it is greedy decoding.   (shared-noise coupling: Daliri et al., 2408.07978)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from specserve.types import SessionSpec
from specserve.verify import sample
from specserve.verify.case import Case, Outcome
from specserve.verify.transform import Prefix

_AT_ONCE = 1 << 17  # up to this many logits one pass over all rows is cheaper than a pass per depth

Draw = Callable[[Tensor, Sequence[SessionSpec], Sequence[Prefix]], tuple[Tensor, Tensor]]


def coupled(logits: Tensor, cases: Sequence[Case], starts: Sequence[int], draw: Draw = sample.best) -> list[Outcome]:
    """See `Rule`. `draw` gives the winner's score and the winner of each row."""
    walks = [_Walk(case, start) for case, start in zip(cases, starts, strict=True)]
    if sum(case.rows for case in cases) * logits.shape[1] <= _AT_ONCE:
        _walk_at_once(logits, walks, draw)
    else:
        _walk_by_depth(logits, walks, draw)
    return [walk.outcome() for walk in walks]


class _Walk:
    """Where one case stands."""

    __slots__ = ("case", "children", "drafted", "fault", "path", "start", "token")

    def __init__(self, case: Case, start: int) -> None:
        self.case, self.start = case, start
        self.path: list[int] = []
        self.drafted: tuple[int, ...] = ()
        self.token = -1
        self.fault: str | None = None
        draft = case.draft
        self.children: dict[tuple[int, int], int] = {}
        for node, edge in enumerate(zip(draft.parents, draft.tokens, strict=True)):
            self.children.setdefault(edge, node)

    @property
    def node(self) -> int:
        return self.path[-1] if self.path else -1

    def step(self, score: float, token: int) -> bool:
        """Take the law's token at the present node; whether a child equals it, and the walk goes on."""
        if not abs(score) < float("inf"):
            self.fault = f"logits at position {len(self.case.tokens) + len(self.path)} are not finite"
            return False
        child = self.children.get((self.node, token))
        if child is None:
            self.token = token
            return False
        self.path.append(child)
        self.drafted += (token,)
        return True

    def outcome(self) -> Outcome:
        if self.fault is not None:
            return Outcome((), -1, fault=self.fault)
        return Outcome(tuple(self.path), self.token)


def _walk_by_depth(logits: Tensor, walks: Sequence[_Walk], draw: Draw) -> None:
    """Only laws on the walked paths are drawn from, those of one depth together."""
    going = list(walks)
    while going:
        rows = logits.index_select(
            0, torch.tensor([walk.start + 1 + walk.node for walk in going], device=logits.device)
        )
        specs = [walk.case.spec for walk in going]
        drawn = draw(rows, specs, [Prefix(walk.case.tokens, walk.drafted) for walk in going])
        steps = zip(going, *(t.tolist() for t in drawn), strict=True)
        going = [walk for walk, score, token in steps if walk.step(score, token)]


def _walk_at_once(logits: Tensor, walks: Sequence[_Walk], draw: Draw) -> None:
    """Every law is drawn from in one pass: for small batches, where a pass costs more than its elements."""
    specs: list[SessionSpec] = []
    histories: list[Prefix] = []
    rows: list[int] = []
    for walk in walks:
        histories += walk.case.prefixes()
        specs += [walk.case.spec] * walk.case.rows
        rows += range(walk.start, walk.start + walk.case.rows)
    drawn = draw(logits if len(rows) == len(logits) else logits[rows], specs, histories)
    scores, tokens = (t.tolist() for t in drawn)
    first = 0
    for walk in walks:
        while walk.step(scores[at := first + 1 + walk.node], tokens[at]):
            pass
        first += walk.case.rows
