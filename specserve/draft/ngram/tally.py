"""What a drafter has drafted, and what became of it."""

from __future__ import annotations

import numpy as np

from specserve.draft.ngram.history import Counts
from specserve.draft.ngram.rows import STRATEGIES, Flags, Shares

_KEEP = 0.98  # of the means' past, per batch


class Tally:
    """Totals by strategy, and decayed means over batches.

    Args:
        strategy: of each row of a batch its place in STRATEGIES, [K].
    """

    def __init__(self, strategy: Counts) -> None:
        self._strategy = strategy
        self._drafted, self._accepted = np.zeros(len(STRATEGIES)), np.zeros(len(STRATEGIES))
        self._proposals, self._busy_s = 0, 0.0
        self._weight, self._means = 0.0, np.zeros(4)  # of a batch: drafts, rows, depths, seconds

    def drafted(self, nodes: Flags) -> None:
        """A batch of drafts; which nodes of the rows are in them, [S, K, W]."""
        self._drafted += self._by_strategy(nodes)
        self._proposals += len(nodes)
        some = nodes.any((1, 2)).sum()
        self._means[:3] += some, nodes.any(2).sum(), nodes.any(1).sum()

    def accepted(self, nodes: Flags) -> None:
        """Which of the nodes drafted before were the target's text, [S, K, W]."""
        self._accepted += self._by_strategy(nodes)

    def worked(self, seconds: float) -> None:
        """A batch has taken so long."""
        self._busy_s += seconds
        self._means[3] += seconds
        self._weight += 1
        self._means *= _KEEP
        self._weight *= _KEEP

    def summary(self) -> dict[str, float]:
        """Units in the names. `rows_per_draft` and `depth_per_draft` are the (k, w) of drafts that hold anything."""
        drafts, rows, depths, seconds = self._means.tolist()
        summary = {
            "proposals": float(self._proposals),
            "drafted_tokens": float(self._drafted.sum()),
            "accepted_tokens": float(self._accepted.sum()),
            "busy_s": self._busy_s,
            "batch_ms": 1e3 * seconds / max(self._weight, 1e-9),
            "rows_per_draft": rows / max(drafts, 1e-9),
            "depth_per_draft": depths / max(drafts, 1e-9),
        }
        for place, strategy in enumerate(STRATEGIES):
            if self._drafted[place]:
                summary[f"{strategy}_drafted_tokens"] = float(self._drafted[place])
                summary[f"{strategy}_accepted_tokens"] = float(self._accepted[place])
        return summary

    def _by_strategy(self, nodes: Flags) -> Shares:
        return np.bincount(self._strategy, nodes.sum((0, 2)), len(STRATEGIES)).astype(float)
