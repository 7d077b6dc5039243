"""The context n-gram drafter (2504.20456, section 5): what usually follows the token on the left, in this very text."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from specserve.filling import Cell


class Bigram:
    """Bigram counts over the tokens that are given or written; unigram counts where the left token is new or hidden.

    Args:
        content: (position, token); neighbours in position make a bigram.
        vocab: size V of the laws.
        greedy: all mass on the most frequent token, of equals the smallest id.
    """

    def __init__(self, content: Sequence[Cell], vocab: int, *, greedy: bool = False) -> None:
        self._at = dict(content)
        self._vocab, self._greedy = vocab, greedy
        self._unigrams = Counter(self._at.values())
        self._bigrams: defaultdict[int, Counter[int]] = defaultdict(Counter)
        for position, token in self._at.items():
            left = self._at.get(position - 1)
            if left is not None:
                self._bigrams[left][token] += 1

    def law(self, position: int, drafted: Mapping[int, int]) -> npt.NDArray[np.float64]:
        """The law of the token at `position`, [V]; `drafted` are tokens by position that are not written yet."""
        left = drafted.get(position - 1, self._at.get(position - 1))
        counts = (self._bigrams.get(left) if left is not None else None) or self._unigrams
        law = np.zeros(self._vocab)
        if self._greedy:
            law[min(counts, key=lambda token: (-counts[token], token))] = 1.0
        else:
            law[list(counts)] = list(counts.values())
            law /= law.sum()
        return law
