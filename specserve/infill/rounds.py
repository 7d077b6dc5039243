"""How tokens are written: one at a time, or many at once by any-subset speculative decoding (ASSD, 2504.20456).

A round is a generator: it yields what the next forward pass must answer, is sent the laws, and returns what became
final. Whoever drives it may put the passes of many requests in one batch. Laws are numpy, fp64, [queries, V].
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from specserve.filling import Cell, Filling
from specserve.infill.bigram import Bigram
from specserve.types import TokenIds
from specserve.verify.noise import Purpose

Law = npt.NDArray[np.float64]


class Draws(Protocol):
    """Where randomness comes from."""

    def draw(self, laws: Law, positions: Sequence[int], purpose: Purpose) -> list[int]:
        """One token per row of laws [n, V], each drawn independently of the others."""

    def coin(self, probability: float, position: int) -> bool:
        """True with this probability."""


@dataclass(frozen=True, slots=True)
class Query:
    """What stands at hidden place `place`, for one that sees the first `seen` ranks?"""

    place: int
    seen: int


@dataclass(frozen=True, slots=True)
class Ask:
    """One forward pass: `draft` are tokens taken to follow the final ones in rank; the answer has a law per query."""

    draft: tuple[Cell, ...]
    queries: tuple[Query, ...]


@dataclass(frozen=True, slots=True)
class Written:
    """Tokens that became final in one round, in order of rank, and how many were judged and kept for it."""

    tokens: TokenIds
    drafted: int = 0
    accepted: int = 0


Round = Generator[Ask, Law, Written]


def sequential(filling: Filling, draws: Draws) -> Round:
    """One token a pass."""
    p = yield Ask((), (Query(filling.next, filling.rank),))
    position = filling.places[filling.next].position
    return Written(tuple(draws.draw(p, [position], Purpose.TOKEN)))


def self_draft(filling: Filling, draws: Draws, k: int) -> Round:
    """At most k + 1 tokens in two passes of the one model (ASSD, algorithm 1).

    The draft queries see what is written, the oracle queries also the draft before them in rank. For the first drafted
    token both are the same query, so it is accepted without being judged: two passes give two tokens at least.
    """
    first, rank = filling.next, filling.rank
    places = range(first, min(first + k, len(filling.places)))
    q = yield Ask((), tuple(Query(place, rank) for place in places))
    drawn = draws.draw(q, [filling.places[place].position for place in places], Purpose.DRAFT)
    chain = filling.chain(drawn)
    if len(chain) == 1:  # the last token, or nothing but a stop: there is nothing to judge
        return Written((chain[0][1],))
    p = yield Ask(_cells(filling, chain), _oracle(filling, chain)[1:])
    return judge(filling, chain, np.concatenate([q[:1], p]), q, draws, sure=1)


def ngram_draft(filling: Filling, draws: Draws, k: int, *, greedy: bool, vocab: int) -> Round:
    """At most k + 1 tokens in one pass: drafts come from the bigrams of what is given and written, place by place."""
    # A stop token says nothing about the text around it; nor need a draft be cut short at one.
    text = [cell for cell in filling.content if cell[1] != filling.stop]
    bigram = Bigram(text, vocab, greedy=greedy)
    chain: list[tuple[int, int]] = []
    laws: list[Law] = []
    drafted: dict[int, int] = {}
    for place in range(filling.next, min(filling.next + k, len(filling.places))):
        position = filling.places[place].position
        laws.append(bigram.law(position, drafted))
        (token,) = draws.draw(laws[-1][None], [position], Purpose.DRAFT)
        drafted[position] = token
        chain.append((place, token))
    p = yield Ask(_cells(filling, chain), _oracle(filling, chain))
    return judge(filling, chain, p, np.stack(laws), draws, sure=0)


def judge(filling: Filling, chain: Sequence[tuple[int, int]], p: Law, q: Law, draws: Draws, sure: int) -> Written:
    """Accept drafted tokens in order of rank, each with probability min(1, p / q), up to the first rejection.

    Args:
        chain: (place, token), as drafted.
        p: laws of the oracle queries: one per token of the chain, and one more where a place follows, [n, V].
        q: laws the tokens were drawn from, a row per place from the next one on.
        sure: how many of the first tokens are accepted unseen, because p = q.
    """
    tokens: list[int] = []
    for i, (place, token) in enumerate(chain):
        law, position = q[place - filling.next], filling.places[place].position
        if i >= sure and not draws.coin(min(1.0, p[i, token] / law[token]), position):
            (recovered,) = draws.draw(residual(p[i], law)[None], [position], Purpose.RESIDUAL)
            return Written((*tokens, recovered), i + 1, i)
        tokens.append(token)
    if len(p) > len(chain):  # the bonus: all were accepted, and the pass has answered for one more place
        bonus = filling.after(*chain[-1])
        tokens += draws.draw(p[-1:], [filling.places[bonus].position], Purpose.RESIDUAL)
    return Written(tuple(tokens), len(chain), len(chain))


def residual(p: Law, q: Law) -> Law:
    """residual(y) ∝ max(p(y) - q(y), 0), the law to draw from after a rejection (2211.17192). p, q: [V]."""
    rest = np.maximum(p - q, 0.0)
    total = rest.sum()
    return rest / total if total > 0 else p


def _cells(filling: Filling, chain: Sequence[tuple[int, int]]) -> tuple[Cell, ...]:
    return tuple((filling.places[place].position, token) for place, token in chain)


def _oracle(filling: Filling, chain: Sequence[tuple[int, int]]) -> tuple[Query, ...]:
    """A query per drafted token, each seeing the draft before it, and one for the place after the chain."""
    places = [place for place, _ in chain]
    bonus = filling.after(*chain[-1])
    if bonus < len(filling.places):
        places.append(bonus)
    return tuple(Query(place, filling.rank + i) for i, place in enumerate(places))
