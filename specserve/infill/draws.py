"""Counter-based draws: functions of (seed, purpose, position) alone, so that a resumed request writes the same text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from specserve.infill.rounds import Law
from specserve.verify.noise import Purpose, arrivals, key, uniform


class SeededDraws:
    """A position's draw of one purpose is only ever used once: a token that was drafted there in an earlier round, and
    never judged, has had no influence on anything. Resuming at the end of a round therefore changes nothing."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def draw(self, laws: Law, positions: Sequence[int], purpose: Purpose) -> list[int]:
        """The winners of the races argmin E / p."""
        keys = [key(self._seed, purpose, position) for position in positions]
        race = arrivals(keys, laws.shape[1]).numpy().astype(np.float64)
        with np.errstate(divide="ignore"):
            return [int(token) for token in (race / laws).argmin(-1)]

    def coin(self, probability: float, position: int) -> bool:
        return uniform(self._seed, Purpose.ACCEPT, position, 0) < probability
