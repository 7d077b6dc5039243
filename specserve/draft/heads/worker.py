"""Backend of a pool of heads: hidden states come with every Propose, drafts go back."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from specserve.draft.heads.drafting import HeadsDrafting
from specserve.engine.ahead import LAST, Wish, unpacked
from specserve.errors import InvalidRequest, SpecserveError
from specserve.types import Close, Command, Draft, Failed, Features, Proposal, Propose, Reply, SessionLost, SessionSpec
from specserve.verify import lookup_rule


@dataclass(slots=True)
class _Seat:
    """A session: its committed tokens; while a draft is wanted, how deep and from which hidden state [1, d]."""

    spec: SessionSpec
    tokens: list[int] = field(default_factory=list)
    want: tuple[int, Tensor] | None = None


class HeadsDrafter:
    """See serving.backend. A Propose without hidden states of the right token gets an empty draft: a session that has
    just moved to another verifier goes without for a round.

    Args:
        drafting: the same that runs in a verifier.
        vocab_size, width: of the target.
    """

    def __init__(self, drafting: HeadsDrafting, vocab_size: int, width: int) -> None:
        self._drafting, self._vocab, self._width = drafting, vocab_size, width
        self._seats: dict[int, _Seat] = {}
        self._waiting: dict[int, None] = {}
        self._counts = {"tokens_drafted": 0.0, "busy_s": 0.0}

    def submit(self, command: Command) -> Sequence[Reply]:
        """Take one command in. Replies here are the ones that need no computing."""
        session = command.session
        try:
            if isinstance(command, Close):
                self._forget(session)
                return ()
            if not isinstance(command, Propose):
                raise InvalidRequest("command", "must be Propose or Close at a drafter", type(command).__name__)
            return self._propose(command)
        except SpecserveError as error:
            self._forget(session)
            return [Failed(session, type(error).__name__, str(error))]

    def step(self) -> Sequence[Reply]:
        """Draft for all that wait."""
        wishes, states = [], []
        for session in self._waiting:
            seat = self._seats[session]
            assert seat.want is not None
            depth, hidden = seat.want
            wishes.append(Wish(session, seat.spec, seat.tokens, depth))
            states.append(hidden)
            seat.want = None
        self._waiting.clear()
        if not wishes:
            return ()
        start = time.perf_counter()
        drafts = self._drafting.draft(wishes, torch.cat(states))
        seconds = time.perf_counter() - start
        self._counts["busy_s"] += seconds
        self._counts["tokens_drafted"] += sum(map(len, drafts))
        return [
            Proposal(wish.session, len(wish.tokens), draft, seconds) for wish, draft in zip(wishes, drafts, strict=True)
        ]

    @property
    def busy(self) -> bool:
        """Whether a session waits for its draft."""
        return bool(self._waiting)

    def stats(self) -> dict[str, float]:
        """Sessions, those waiting, tokens drafted, seconds of work."""
        return {"sessions": float(len(self._seats)), "waiting": float(len(self._waiting)), **self._counts}

    def _propose(self, command: Propose) -> Sequence[Reply]:
        session, seat = command.session, self._seats.get(command.session)
        if command.base_len == 0 and command.spec is not None:
            lookup_rule(command.spec.rule)
            self._forget(session)
            seat = self._seats[session] = _Seat(command.spec)
        elif seat is None or len(seat.tokens) != command.base_len:
            return [SessionLost(session, 0 if seat is None else len(seat.tokens))]
        wrong = next((t for t in command.tokens if not 0 <= t < self._vocab), None)
        if wrong is not None:
            raise InvalidRequest("token_ids", f"must be between 0 and {self._vocab - 1}", wrong)
        seat.tokens.extend(command.tokens)
        hidden = self._last(command.features, len(seat.tokens))
        depth = min(command.max_tokens, self._drafting.most)
        if depth < 1 or hidden is None:
            self._waiting.pop(session, None)
            return [Proposal(session, len(seat.tokens), Draft())]
        seat.want = depth, hidden
        self._waiting[session] = None
        return ()

    def _last(self, features: Features | None, length: int) -> Tensor | None:
        """The hidden state of the token before the last one, [1, d], if it was sent."""
        if features is None or LAST not in features.layers:
            return None
        rows = unpacked(features.data, self._width * len(features.layers))
        row = length - 2 - features.first
        if not 0 <= row < len(rows):
            return None
        layer = features.layers.index(LAST)
        return rows[row : row + 1, layer * self._width : (layer + 1) * self._width]

    def _forget(self, session: int) -> None:
        self._seats.pop(session, None)
        self._waiting.pop(session, None)
        self._drafting.forget(session)
