"""Who owns which slot of the token pool. Numbers only: the tensors live in `cache`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from specserve.errors import InvalidRequest, Overloaded

Ids = NDArray[np.int64]


class Slots:
    """A free map over `total` slots, reservations in numbers, and a wish for straight runs.

    A reservation promises a count, not places, so an admitted session can never run out. It also marks a
    run of places for the session where there is one: while a session's slots are one straight run, its keys
    and values are read in place, without a gather.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.reserved = 0
        self._free = np.ones(total, dtype=np.bool_)
        self._marked = np.zeros(total, dtype=np.bool_)

    @property
    def used(self) -> int:
        """Slots owned by somebody now."""
        return self.total - int(np.count_nonzero(self._free))

    def reserve(self, count: int) -> range:
        """Promise `count` slots. Returns the run marked for them, empty when none is long enough.

        Raises:
            Overloaded: too much is promised to others now.
        """
        if self.reserved + count > self.total:
            raise Overloaded(f"the token pool has {self.total - self.reserved} slots unpromised; {count} are needed")
        self.reserved += count
        run = self._run(count)
        self._marked[run.start : run.stop] = True
        return run

    def release(self, count: int, run: range) -> None:
        """Take back a promise and its mark. Its slots must have been given back before."""
        self.reserved -= count
        self._marked[run.start : run.stop] = False

    def take(self, count: int, wish: int) -> Ids:
        """Own `count` slots: `wish`, `wish + 1`, ... when they are free, otherwise any, unmarked ones first."""
        if 0 <= wish <= self.total - count and self._free[wish : wish + count].all():
            self._free[wish : wish + count] = False
            return np.arange(wish, wish + count)
        ids = np.flatnonzero(self._free & ~self._marked)[:count]
        if len(ids) < count:
            rest = np.flatnonzero(self._free & self._marked)[: count - len(ids)]
            ids = np.concatenate([ids, rest])
        assert len(ids) == count, "a session used more slots than it reserved"
        self._free[ids] = False
        return ids

    def give(self, ids: Ids) -> None:
        """Free these slots."""
        assert not self._free[ids].any(), "a slot was freed twice"
        self._free[ids] = True

    def owned(self) -> Ids:
        """All slots that somebody owns, ascending."""
        return np.flatnonzero(~self._free)

    def _run(self, count: int) -> range:
        """The first straight run of `count` free, unmarked places."""
        edges = np.diff(np.concatenate([[0], (self._free & ~self._marked).view(np.int8), [0]]))
        starts, stops = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
        fits = np.flatnonzero(stops - starts >= count)
        return range(int(starts[fits[0]]), int(starts[fits[0]]) + count) if len(fits) else range(0)


class Table:
    """The slots of one session: `length` committed tokens in order, then the nodes of the draft under way.

    Committed token i sits at position i. `straight` is how many slots from the first are one ascending run.
    """

    def __init__(self, slots: Slots, max_len: int, max_nodes: int) -> None:
        self._slots = slots
        self.capacity = max_len + max_nodes
        self._run = slots.reserve(self.capacity)
        self._ids: Ids = np.empty(self.capacity, dtype=np.int64)
        self.length = 0
        self.nodes = 0
        self.straight = 0

    @property
    def ids(self) -> Ids:
        """Slots of the committed tokens and of the nodes, [length + nodes]."""
        return self._ids[: self.length + self.nodes]

    def extend(self, tokens: int, nodes: int) -> None:
        """Own slots for `tokens` more committed tokens and then for `nodes` drafted ones."""
        assert self.nodes == 0, "the last draft was neither committed nor dropped"
        first, count = self.length, tokens + nodes
        if first + count > self.capacity:
            raise InvalidRequest("tokens", f"must stay within the {self.capacity} slots reserved", first + count)
        wish = int(self._ids[first - 1]) + 1 if first else (self._run.start if self._run else -1)
        taken = self._slots.take(count, wish)
        self._ids[first : first + count] = taken
        if count and self.straight == first and (first == 0 or taken[0] == wish):
            self.straight = first + _straight(taken)
        self.length += tokens
        self.nodes = nodes

    def commit(self, nodes: tuple[int, ...]) -> None:
        """Keep the slots of these nodes, in this order, as committed tokens; free the other nodes."""
        start, count = self.length, len(nodes)
        drafted = self._ids[start : start + self.nodes]
        if nodes == tuple(range(count)):
            self._slots.give(drafted[count:])
        else:
            kept = drafted[list(nodes)]
            self._slots.give(np.delete(drafted, list(nodes)))
            drafted[:count] = kept
            if self.straight > start:
                self.straight = _straight(self._ids[: start + count])
        self.length, self.nodes = start + count, 0
        self.straight = min(self.straight, self.length)

    def truncate(self, length: int) -> None:
        """Forget the nodes and all committed tokens from position `length` on."""
        assert 0 <= length <= self.length, "truncation beyond what is held"
        self._slots.give(self._ids[length : self.length + self.nodes])
        self.length, self.nodes = length, 0
        self.straight = min(self.straight, length)

    def close(self) -> None:
        """Free everything and give the promise back."""
        self.truncate(0)
        self._slots.release(self.capacity, self._run)


def _straight(ids: Ids) -> int:
    """How many of `ids` from the first on are consecutive numbers."""
    breaks = np.flatnonzero(np.diff(ids) != 1)
    return int(breaks[0]) + 1 if len(breaks) else len(ids)
