"""One sequence while it is filled, in binary-lattice order: the given tokens come first, then the hidden positions.

Both groups are sorted by position, so that 2^N orders are learnt in the place of N! (2504.20456, section 3). The rank
of a token is its place in that order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from specserve.types import Gap, Piece, TokenIds

Cell = tuple[int, int]  # position, token id


@dataclass(frozen=True, slots=True)
class Place:
    """A hidden position.

    gap, offset: the gap's number, and which of its positions this is.
    end: index of the first place after its gap.
    may_stop: whether the gap's stop token may be written here: the gap holds up to so many tokens.
    """

    position: int
    gap: int
    offset: int
    end: int
    may_stop: bool


class Filling:
    """The state of one request: what is given, what is written, and what is still hidden.

    Args:
        pieces: in order of position; a gap takes as many positions as it may hold.
        stop: the token that ends a gap of up to n tokens; the positions that it leaves are never written nor seen.
        bos: stands before everything where nothing is given: a query must see at least one token.
    """

    def __init__(self, pieces: Sequence[Piece], *, stop: int | None = None, bos: int | None = None) -> None:
        self.stop = stop
        self.given: list[Cell] = []
        self.places: list[Place] = []
        self.written: list[Cell] = []
        self.next = 0  # index of the place to be written next
        position = gap = 0
        if bos is not None and not any(isinstance(piece, tuple) and piece for piece in pieces):
            self.given.append((position, bos))
            position += 1
        for piece in pieces:
            if isinstance(piece, Gap):
                end = len(self.places) + piece.tokens
                self.places += [Place(position + i, gap, i, end, not piece.exact) for i in range(piece.tokens)]
                position, gap = position + piece.tokens, gap + 1
            else:
                self.given += [(position + i, token) for i, token in enumerate(piece)]
                position += len(piece)
        self.length, self.gaps = position, gap  # positions in all; gaps
        assert self.given, "a query must see at least one token"

    @property
    def done(self) -> bool:
        return self.next == len(self.places)

    @property
    def rank(self) -> int:
        """Rank of the next token: how many are given or written."""
        return len(self.given) + len(self.written)

    @property
    def content(self) -> list[Cell]:
        """What is given or written, in order of rank."""
        return self.given + self.written

    def after(self, place: int, token: int) -> int:
        """Index of the place that follows once `token` stands at `place`."""
        at = self.places[place]
        return at.end if at.may_stop and token == self.stop else place + 1

    def chain(self, tokens: Sequence[int]) -> list[tuple[int, int]]:
        """(place, token) of drafted tokens for the next places, without those that a drafted stop leaves unwritten."""
        place, chain = self.next, []
        while place < self.next + len(tokens):
            token = tokens[place - self.next]
            chain.append((place, token))
            place = self.after(place, token)
        return chain

    def write(self, tokens: Sequence[int]) -> list[tuple[Place, int]]:
        """Make tokens final, one after the other in rank. Returns them with their places."""
        placed = []
        for token in tokens:
            placed.append((self.places[self.next], token))
            self.next = self.after(self.next, token)
        self.written += [(place.position, token) for place, token in placed]
        return placed

    def filled(self) -> Iterator[TokenIds]:
        """What is written in each gap, in order, without stop tokens."""
        found: list[list[int]] = [[] for _ in range(self.gaps)]
        for place, token in self.placed():
            if not (place.may_stop and token == self.stop):
                found[place.gap].append(token)
        return map(tuple, found)

    def placed(self) -> Iterator[tuple[Place, int]]:
        """What is written and where, in order of rank, stop tokens included."""
        at = {place.position: place for place in self.places}
        return ((at[position], token) for position, token in self.written)
