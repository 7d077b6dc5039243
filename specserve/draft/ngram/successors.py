"""Which tokens follow which: a table of successors, walked into rows."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from specserve.draft.ngram.history import SEAM, Ids

KEPT = 8
"""Successors remembered of a token."""

_MOST_IDS = 1 << 20  # ids beyond are not remembered: a bad one must not cost memory


def walk(successors: Ids, roots: Ids, rows: int, depth: int, greedy: Ids | None = None) -> Ids:
    """Rows that begin with each of the best successors and go on with the best one's best.   (2411.03786, 4.2)

    Args:
        successors: [V + 1, k], best first, SEAM where there is none; the last row is SEAM, so that SEAM leads to SEAM.
        roots: the tokens before the rows, [S].
        greedy: [V + 1, k', w'] whole beginnings of rows, used instead of walking as far as they go.
    Returns:
        [S, min(rows, k), depth], SEAM where a row has ended.
    """
    roots = np.where(roots < len(successors) - 1, roots, SEAM)
    first = successors[roots, :rows]
    out = np.full((*first.shape, depth), SEAM, np.int32)
    out[:, :, 0] = first
    for d in range(1, depth):
        out[:, :, d] = successors[out[:, :, d - 1], 0]
    if greedy is not None:
        known = greedy[roots, :rows, :depth]
        out[:, : known.shape[1], : known.shape[2]] = known
        for d in range(known.shape[2], depth):
            out[:, : known.shape[1], d] = successors[out[:, : known.shape[1], d - 1], 0]
    return out


class Recycled:
    """The last successors that were met of every token, the latest first.   (Token Recycling, 2408.08696)

    The paper refreshes rows from the logits of every verified node. Verdicts carry none, so these rows begin as the
    target's bigrams, where there is a table, and are refreshed by the tokens that were committed.

    Args:
        seed: successors to begin with, [V + 1, k]; None begins empty and grows with the ids met.
    """

    def __init__(self, seed: Ids | None = None) -> None:
        size = 1 if seed is None else len(seed)
        self.table: Ids = np.full((size, KEPT), SEAM, np.int32)
        if seed is not None:
            kept = min(KEPT, seed.shape[1])
            self.table[:, :kept] = seed[:, :kept]

    @property
    def nbytes(self) -> int:
        return self.table.nbytes

    def learn(self, tokens: Sequence[int]) -> None:
        """Every token was followed by the next."""
        self._reach(max(tokens, default=0))
        table, most = self.table, len(self.table) - 1
        for token, after in itertools.pairwise(tokens):
            if not (0 <= token < most and 0 <= after < _MOST_IDS):
                continue
            row = table[token].tolist()
            if row[0] != after:
                if after in row:
                    row.remove(after)
                table[token] = [after, *row][:KEPT]

    def _reach(self, token: int) -> None:
        if len(self.table) - 1 <= token < _MOST_IDS:
            grown: NDArray[np.int32] = np.full((max(token + 2, 2 * len(self.table)), KEPT), SEAM, np.int32)
            grown[: len(self.table)] = self.table
            self.table = grown
