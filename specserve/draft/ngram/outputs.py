"""Past outputs of one tenant, found by their trigrams: a ring of tokens under hash chains, as in deflate."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from specserve.draft.ngram.history import SEAM, Counts, Ids

SHORTEST = 3
"""Tokens that must agree before a place is found."""

TOKEN_BYTES = 20
_CHAIN = 16  # places looked at, the latest with this trigram
_SMALLEST = 1024


class Outputs:
    """What a suffix tree over the last `capacity` tokens would find for suffixes of three tokens or more, among the 16
    latest places. The newest output displaces the oldest, token by token.

    Adding costs the added tokens, also when the ring grows (it doubles); finding costs neither the size of the ring
    nor its age.

    Args:
        capacity: tokens held at most; a power of two.
    """

    def __init__(self, capacity: int) -> None:
        assert capacity & (capacity - 1) == 0, "a power of two"
        self._most = capacity
        self._written = 0  # positions count from the first token ever added
        self._make(min(_SMALLEST, capacity))

    @property
    def held(self) -> int:
        """Tokens, seams included."""
        return min(self._written, len(self._tokens))

    @property
    def nbytes(self) -> int:
        return self._tokens.nbytes + self._before.nbytes + self._heads.nbytes

    def nbytes_after(self, tokens: int) -> int:
        """Bytes once an output of so many tokens has been added."""
        return TOKEN_BYTES * self._size_for(min(tokens, self._most // 2) + 1)

    def add(self, output: Ids) -> None:
        """Take in one output. It starts after a seam: no match and no continuation crosses it."""
        output = np.append(output[-(self._most // 2) :], SEAM).astype(np.int32)
        if (size := self._size_for(len(output))) > len(self._tokens):
            kept = self._tokens[: self._written].copy()
            self._written = 0
            self._make(size)
            self._write(kept)
        self._write(output)

    def find(self, tail: Ids, longest: int, width: int) -> tuple[Ids, Counts]:
        """Where the last tokens of another text stand, the latest place first.

        Args:
            tail: those tokens, the last one last.
            longest: agreement counts up to so many.
        Returns:
            what followed, [m, width], SEAM after an output's end; agreement, [m], at least 3.
        """
        if len(tail) < SHORTEST:
            return np.empty((0, width), np.int32), np.empty(0, np.int64)
        mask, oldest = len(self._tokens) - 1, self._written - len(self._tokens)
        place = int(self._heads[int(_hashes(tail[-SHORTEST:])[0]) & mask])
        places: list[int] = []
        while place >= max(oldest, 0) and len(places) < _CHAIN:
            places.append(place)
            place = int(self._before[place & mask])
        ends = np.array(places, np.int64)[:, None]
        tail = tail[-longest:][::-1]
        at = ends - np.arange(len(tail))
        agree = (self._tokens[at & mask] == tail) & (at >= max(oldest, 0))
        lengths = np.logical_and.accumulate(agree, 1).sum(1)
        after = ends + 1 + np.arange(width)
        windows = np.where(after < self._written, self._tokens[after & mask], np.int32(SEAM))
        found = lengths >= SHORTEST  # a hash may lie
        return windows[found], lengths[found]

    def _size_for(self, more: int) -> int:
        size = len(self._tokens)
        while self._written + more > size < self._most:
            size *= 2
        return size

    def _make(self, size: int) -> None:
        self._tokens: Ids = np.full(size, SEAM, np.int32)
        self._before: NDArray[np.int64] = np.full(size, -1, np.int64)  # the place before with the same hash
        self._heads: NDArray[np.int64] = np.full(size, -1, np.int64)  # the latest place, by hash

    def _write(self, tokens: Ids) -> None:
        """Append and link, at most half a ring at a time (of a ring that has just been made, all it takes)."""
        size, start = len(self._tokens), self._written
        mask = size - 1
        places = np.arange(start, start + len(tokens))
        self._tokens[places & mask] = tokens
        self._written += len(tokens)
        near = self._tokens[np.arange(max(start - SHORTEST + 1, 0), self._written) & mask]
        if len(near) < SHORTEST:
            return
        hashes, places = _hashes(near) & mask, np.arange(self._written - len(near) + SHORTEST - 1, self._written)
        order = np.argsort(hashes, kind="stable")
        by_hash, by_place = hashes[order], places[order]
        again = np.append(False, by_hash[1:] == by_hash[:-1])
        self._before[by_place & mask] = np.where(again, np.append(-1, by_place[:-1]), self._heads[by_hash])
        self._heads[hashes] = places  # of equal hashes the last is kept


def _hashes(tokens: Ids) -> NDArray[np.int64]:
    """Of every three tokens in a row, [n - 2]; not below 0."""
    wide = tokens.astype(np.uint64)
    mixed = (wide[:-2] * np.uint64(0x9E3779B97F4A7C15) ^ wide[1:-1]) * np.uint64(0xC2B2AE3D27D4EB4F) ^ wide[2:]
    mixed = mixed * np.uint64(0x165667B19E3779F9)
    hashes: NDArray[np.int64] = (mixed >> np.uint64(33)).astype(np.int64)
    return hashes
