"""A session's text, as far as drafters may copy from it: what it refers to, its prompt and its output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SEAM = -1
"""Between texts, before them, and where a row has ended: equal to no token."""

Ids = NDArray[np.int32]
Counts = NDArray[np.int64]

_PAD = 4  # seams before the text: looking so far back needs no bounds
_SCANNED = 1024  # occurrences of the last token that are looked at, the latest


class Matches(NamedTuple):
    """Where a text's last tokens also stand.

    Args:
        starts: positions of what followed, [m].
        lengths: how many tokens before agree with the end of the text, [m], at least 1.
    """

    starts: Counts
    lengths: Counts


_NONE = Matches(np.empty(0, np.int64), np.empty(0, np.int64))


class History:
    """At most 2 · `window` tokens, of them always the last `window`. An extension costs its own tokens.

    There is no index: numpy compares 2,000 tokens with the last one in 2 µs, 32,000 in 15.

    Args:
        window: tokens that are searched.
        reference: text that stands before the session's own.
    """

    def __init__(self, window: int, reference: Sequence[int] = ()) -> None:
        self.length = 0  # of the session's own tokens
        self._window = window
        self._tokens: Ids = np.full(256, SEAM, np.int32)
        self._stored = _PAD
        if reference:
            self._append(reference)
            self._append((SEAM,))

    @property
    def nbytes(self) -> int:
        return self._tokens.nbytes

    @property
    def last(self) -> int:
        """The last token; SEAM before the first."""
        return int(self._tokens[self._stored - 1])

    def tail(self, count: int) -> Ids:
        """The last tokens, at most `count`, without what a seam cuts off; the text's last token is the last."""
        start = max(_PAD, self._stored - min(count, self.length))
        return self._tokens[start : self._stored]

    def extend(self, tokens: Sequence[int]) -> None:
        """The session's text goes on."""
        self.length += len(tokens)
        self._append(tokens)

    def find(self, most: int, longest: int) -> Matches:
        """The `most` places with the longest agreement, of equals the latest; agreement counts up to `longest`."""
        tokens, last = self._tokens[: self._stored], self._stored - 1
        if self.length == 0:
            return _NONE
        ends = np.flatnonzero(tokens[_PAD:last] == tokens[last])[-_SCANNED:] + _PAD
        if not len(ends):
            return _NONE
        lengths = np.ones(len(ends), np.int64)
        agree = np.arange(len(ends))
        for back in range(1, min(_PAD, longest)):
            if tokens[last - back] == SEAM:
                break
            agree = agree[tokens[ends[agree] - back] == tokens[last - back]]
            if not len(agree):
                break
            lengths[agree] = back + 1
        else:
            agree = agree[-4 * most :] if longest > _PAD else agree[:0]
            lengths[agree] += self._further(ends[agree], min(longest, last))
        if len(ends) > 1:
            best = np.argsort(-(lengths * (last + 1) + ends))[:most]
            ends, lengths = ends[best], lengths[best]
        return Matches(ends + 1, lengths)

    def windows(self, starts: Counts, width: int) -> Ids:
        """What followed, [m, width]. What reaches the end of the text goes on from its own beginning: a loop is
        drafted as a loop."""
        period = (self._stored - starts)[:, None]
        return self._tokens[starts[:, None] + np.arange(width) % period]

    def _further(self, ends: Counts, longest: int) -> Counts:
        """Agreement beyond the first _PAD tokens, [m]."""
        back = np.arange(_PAD, longest)
        tokens, last = self._tokens, self._stored - 1
        agree = (tokens[np.maximum(ends[:, None] - back, 0)] == tokens[last - back]) & (tokens[last - back] != SEAM)
        further: Counts = np.logical_and.accumulate(agree, 1).sum(1)
        return further

    def _append(self, tokens: Sequence[int]) -> None:
        tokens = tokens[-self._window :]
        need = self._stored + len(tokens)
        most = _PAD + 2 * self._window
        if need > most:
            keep = self._window - len(tokens)
            self._tokens[_PAD : _PAD + keep] = self._tokens[self._stored - keep : self._stored].copy()
            self._stored, need = _PAD + keep, _PAD + self._window
        elif need > len(self._tokens):
            grown = np.full(min(2 * need, most), SEAM, np.int32)
            grown[: self._stored] = self._tokens[: self._stored]
            self._tokens = grown
        self._tokens[self._stored : need] = tokens
        self._stored = need
