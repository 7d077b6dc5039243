"""How likely each candidate is the target's token: one number, learned from what was committed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]

_GRID = 0.1 * 2.0 ** (0.5 * np.arange(11))  # 0.1 to 3.2
_HOPE, _WEIGHT = 0.6, 4.0  # where it starts, and how firmly: a few tens of tokens overrule it
_KEEP = 0.995


class Temper:
    """A temperature τ for the drafter's scores, in units of its logits.

    Model: the target's logits are the drafter's and Gumbel errors of scale τ. The target's token is the best of
    T·(log p + g), so of the drafter's T·(log q + g) candidate v wins with probability softmax(T·(log q + g)/τ)_v, and
    softmax(logits/τ)_v at T = 0. In these units τ does not depend on the request's temperature. Of a few values the
    one is used that made the committed tokens most likely; old ones fade.
    """

    def __init__(self) -> None:
        self._evidence = -_WEIGHT * np.log(_GRID / _HOPE) ** 2

    @property
    def tau(self) -> float:
        return float(_GRID[self._evidence.argmax()])

    def shares(self, scores: Scores) -> Scores:
        """Estimated acceptance of each candidate, [N, m], from scores in units of logits; -inf has none."""
        weights: Scores = np.exp((scores - scores[:, :1]) / self.tau)
        weights /= weights.sum(-1, keepdims=True)
        return weights

    def observe(self, scores: Scores, rank: int) -> None:
        """Of candidates [m], best first, number `rank` was the target's; one that was none of them counts as the last.

        A rank of m or more says just that the error was large.
        """
        scores = scores[np.isfinite(scores)]
        if not len(scores):
            return
        x = (scores - scores[0])[None] / _GRID[:, None]
        gain = x[:, min(rank, len(scores) - 1)] - np.log(np.exp(x).sum(-1))
        self._evidence = _KEEP * self._evidence + gain
