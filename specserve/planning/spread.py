"""How values are spread, in bins of one percent: millions of them in a few kilobytes."""

from __future__ import annotations

import math
from collections import Counter

_BINS = 100.0  # per factor of e


class Spread:
    """Counts positive values."""

    def __init__(self) -> None:
        self._bins: Counter[int] = Counter()

    def add(self, value: float, times: int = 1) -> None:
        self._bins[math.floor(_BINS * math.log(max(value, 1e-9)))] += times

    def __iadd__(self, other: Spread) -> Spread:
        self._bins.update(other._bins)
        return self

    def quantile(self, q: float) -> float:
        """To within one percent; NaN of nothing."""
        left = q * self._bins.total()
        for bin_ in sorted(self._bins):
            left -= self._bins[bin_]
            if left < 0:
                return math.exp((bin_ + 0.5) / _BINS)
        return math.nan
