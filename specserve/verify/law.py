"""Laws during acceptance: the target's law at one row, changed only on the few ids that could have been drafted there.

Every rule's residual has the form (a p - q)+, and q is 0 but on at most 64 ids. So a law is a weight for each of those
ids and one factor for all others: the algebra of a rule never touches the vocabulary. fp64 throughout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Weights = NDArray[np.float64]  # [m], over the ids of one fork
Coin = Callable[[float], bool]
"""Toss: True with the given probability. What is at most 0 never comes, what is at least 1 always."""


class Child(NamedTuple):
    """One drafted token after a node, as drawn."""

    node: int
    at: int  # where its token stands among the fork's ids
    q: Weights  # the law it was drawn from
    source: int  # equal for siblings drawn from one law by one drafter


@dataclass(slots=True)
class Fork:
    """A node with children: the target's law after it, p on `ids` and `outside` in all."""

    ids: NDArray[np.int64]
    p: Weights
    outside: float
    children: list[Child] = field(default_factory=list)

    @property
    def law(self) -> Law:
        return Law(self, self.p, 1.0)


class Law(NamedTuple):
    """Weight of each of the fork's ids, and the factor on p for every other token."""

    fork: Fork
    weights: Weights
    rest: float

    def residual(self, q: Weights, a: float = 1.0) -> tuple[float, Law]:
        """Mass and normalised law of (a·self - q)+.   (Leviathan et al., 2211.17192; a: Sun et al., 2403.10444)

        Where the mass is 0 the two agree and a rejection has probability 0; the law is then unchanged.
        """
        weights = np.maximum(a * self.weights - q, 0.0)
        mass = float(weights.sum()) + a * self.rest * self.fork.outside
        if mass <= 0.0:
            return 0.0, self
        return mass, Law(self.fork, weights / mass, a * self.rest / mass)


class Emission(NamedTuple):
    """What a rule decides: the accepted path, and the law of one more token (None: the target's own after the path)."""

    path: tuple[int, ...]
    law: Law | None = None


@dataclass(frozen=True, slots=True)
class Tree:
    """A draft with the target's law at each node that has children; node -1 is the last committed token."""

    forks: dict[int, Fork]


TossedRule = Callable[[Tree, Coin], Emission]


def without(q: Weights, at: int) -> Weights:
    """q after one id was drawn and not put back, renormalised; all zeros when nothing is left."""
    left = q.copy()
    left[at] = 0.0
    mass = float(left.sum())
    return left / mass if mass > 0.0 else left
