"""Bootstrap intervals over prompts: one set of resamples for everything, so that ratios are paired."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

_RESAMPLES = 2000


class Bootstrap:
    """Draws prompts with replacement; a figure is a ratio of sums over the prompts drawn."""

    def __init__(self, prompts: int, seed: int = 0) -> None:
        again = np.random.default_rng(seed).multinomial(prompts, np.full(prompts, 1 / prompts), _RESAMPLES)
        self._counts: Values = np.vstack([np.ones(prompts), again]).astype(np.float64)

    def ratio(self, above: Sequence[float], below: Sequence[float]) -> Values:
        """Σ above / Σ below, of all prompts and then of every resample."""
        result: Values = (self._counts @ np.array(above)) / (self._counts @ np.array(below))
        return result


def interval(values: Values) -> dict[str, float]:
    """The figure itself, and where 95 % of its resamples lie."""
    low, high = np.percentile(values[1:], [2.5, 97.5])
    return {"value": float(values[0]), "low": float(low), "high": float(high)}
