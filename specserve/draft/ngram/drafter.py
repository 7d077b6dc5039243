"""The n-gram drafter's worker: sessions, batches, and learning from what was committed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from specserve.draft.ngram.history import SEAM, Counts, History
from specserve.draft.ngram.memory import Memory
from specserve.draft.ngram.offers import Offers
from specserve.draft.ngram.payoff import Payoff
from specserve.draft.ngram.rows import STRATEGIES, Flags, Rows, Shares
from specserve.draft.ngram.table import Table, with_seam
from specserve.draft.ngram.tally import Tally
from specserve.draft.ngram.trie import Trie, cut, merge_rows, values
from specserve.errors import ConfigError
from specserve.types import Close, Command, Draft, DraftContext, Failed, Proposal, Propose, Reply, SessionLost

_BATCH = 32  # sessions in one step
_TELL_S = 1.0  # between two times that a proposal carries what was measured
_ALL = 1 << 20
DEFAULT_STRATEGIES = ("context", "suffix", "bigram", "recycled")


@dataclass(slots=True, eq=False)
class _Offered:
    """What a session was offered last: tokens, keys and what of it was drafted, each [K, W]."""

    tokens: NDArray[np.int32]
    keys: Counts
    drafted: Flags


@dataclass(slots=True, eq=False)
class _Seat:
    """A session: its text, whose it is, and what its strategies have shown."""

    history: History
    context: DraftContext
    prompt_len: int
    branches: int
    nodes: int
    record: Shares = field(default_factory=Payoff.fresh)
    offered: _Offered | None = None


class NgramDrafter:
    """A worker's backend that needs no model (see serving.backend): a mix of strategies, one trie per round.

    A node is drafted when what it is expected to bring is at least the price that the router puts on it, best nodes
    first up to the router's budget. Acceptance is learned by strategy, evidence, siblings and depth, over all sessions
    and corrected for each one; so rows go to the strategies that pay.

    Exactness does not depend on any of this: the verifier judges every node.

    Args:
        strategies: those that take part, of STRATEGIES.
        table: the target's unigrams and bigrams; without it, strategies that need one offer nothing.
        rows: most rows of one strategy (k).
        context_rows: most rows of the context strategy; more of them crowd out the others and gain little.
        max_ngram: tokens of agreement that the context strategy looks at; the longest agreement wins.
        max_tokens: deepest draft (w).
        max_sessions: sessions held; beyond, the one that has been quiet longest is forgotten.
        window: tokens of a session's text, its reference included, that are searched.
        memory_bytes: of what tenants' requests leave behind, all together; 0 remembers nothing.
        tune: False drafts the first `rows` distinct rows whole, whatever they cost: the paper's (k, w) batch.
    Raises:
        ConfigError: no strategy, or one that does not exist.
    """

    def __init__(
        self,
        *,
        strategies: Sequence[str] = DEFAULT_STRATEGIES,
        table: Table | None = None,
        rows: int = 4,
        context_rows: int = 4,
        max_ngram: int = 3,
        max_tokens: int = 12,
        max_sessions: int = 1024,
        window: int = 32_768,
        memory_bytes: int = 64 << 20,
        tune: bool = True,
        name: str = "ngram",
    ) -> None:
        if not strategies or not set(strategies) <= set(STRATEGIES):
            raise ConfigError(
                f"strategies must be among {', '.join(STRATEGIES)}; got {', '.join(strategies) or 'none'}"
            )
        self._offers = Offers(strategies, rows, context_rows, max_ngram, max_tokens, table)
        self._rows, self._max_tokens, self._tune, self._name = rows, max_tokens, tune, name
        self._max_sessions, self._window = max_sessions, window
        self._learns = bool({"suffix", "recycled"} & set(strategies)) and memory_bytes > 0
        seed = None if table is None or "recycled" not in strategies else with_seam(table.successors)
        self._memory, self._payoff = Memory(memory_bytes, seed), Payoff(self._offers.strategy)
        self._sessions: dict[int, _Seat] = {}  # the quietest first
        self._queue: list[Propose] = []
        self._tally, self._told_s = Tally(self._offers.strategy), 0.0

    def submit(self, command: Command) -> Sequence[Reply]:
        """Take one command in."""
        session = command.session
        if isinstance(command, Close):
            self._leave(session)
            self._queue = [waiting for waiting in self._queue if waiting.session != session]
            return ()
        if not isinstance(command, Propose):
            return (Failed(session, "EngineError", "a drafter cannot verify"),)
        if command.base_len == 0:
            self._open(command)
        seat = self._sessions.pop(session, None)
        if seat is None:
            return (SessionLost(session, 0),)
        self._sessions[session] = seat
        if seat.history.length != command.base_len:
            return (SessionLost(session, seat.history.length),)
        self._queue = [waiting for waiting in self._queue if waiting.session != session]
        self._queue.append(command)
        self._forget()
        return ()

    @property
    def busy(self) -> bool:
        """Whether a session waits for its draft."""
        return bool(self._queue)

    def step(self) -> Sequence[Reply]:
        """Take in what is new of the sessions that wait, and draft for them."""
        began = time.perf_counter()
        batch, self._queue = self._queue[:_BATCH], self._queue[_BATCH:]
        self._observe(batch)
        for command in batch:
            self._take(command)
        asking = [command for command in batch if command.max_tokens > 0]
        drafts = dict(zip((c.session for c in asking), self._draft(asking) if asking else (), strict=True))
        ended = time.perf_counter()
        self._tally.worked(ended - began)
        measured: dict[str, float] = {}
        if ended - self._told_s >= _TELL_S:
            measured, self._told_s = self.stats(), ended
        return [
            Proposal(
                command.session,
                command.base_len + len(command.tokens),
                drafts.get(command.session, Draft()),
                ended - began,
                {} if number else measured,
            )
            for number, command in enumerate(batch)
        ]

    def stats(self) -> dict[str, float]:
        """Sessions, tokens and bytes held, what was drafted and accepted, what was learned, what is remembered."""
        seats = self._sessions.values()
        return {
            "sessions": float(len(seats)),
            "tokens": float(sum(seat.history.length for seat in seats)),
            "text_bytes": float(sum(seat.history.nbytes for seat in seats)),
            **self._tally.summary(),
            **self._payoff.summary(),
            **self._memory.stats(),
        }

    def _open(self, command: Propose) -> None:
        context, spec = command.context or DraftContext(), command.spec
        old = self._sessions.pop(command.session, None)
        seat = _Seat(
            History(self._window, context.reference),
            context,
            prompt_len=spec.prompt_len if spec is not None else len(command.tokens),
            branches=spec.branches if spec is not None else 0,
            nodes=spec.max_draft_nodes if spec is not None else 0,
        )
        if old is not None:
            seat.record = old.record
        self._sessions[command.session] = seat

    def _observe(self, batch: Sequence[Propose]) -> None:
        """Score what was offered against what was committed since."""
        seats: list[_Seat] = []
        told: list[_Offered] = []
        known: list[tuple[int, ...]] = []
        for command in batch:
            seat = self._sessions[command.session]
            if seat.offered is not None and command.tokens:
                seats.append(seat)
                told.append(seat.offered)
                known.append(command.tokens[: self._max_tokens])
                seat.offered = None
        if not told:
            return
        text = np.full((len(told), self._max_tokens), SEAM, np.int32)
        for i, some in enumerate(known):
            text[i, : len(some)] = some
        tokens = np.stack([offered.tokens for offered in told])
        right = np.logical_and.accumulate((tokens == text[:, None]) & (text >= 0)[:, None], -1)
        grown = self._payoff.observe(np.stack([offered.keys for offered in told]), right, (text >= 0)[:, None])
        for seat, more in zip(seats, grown, strict=True):
            seat.record = seat.record + more
        self._tally.accepted(right & np.stack([offered.drafted for offered in told]))

    def _take(self, command: Propose) -> None:
        seat = self._sessions[command.session]
        history, context = seat.history, seat.context
        before = [history.last] if history.length >= seat.prompt_len else []
        history.extend(command.tokens)
        output = command.tokens[max(seat.prompt_len - command.base_len, 0) :]
        if output and self._learns and not context.private:
            self._memory.learn(context.tenant, [*before, *output])

    def _draft(self, asking: Sequence[Propose]) -> list[Draft]:
        """Drafts for S sessions."""
        seats = [self._sessions[command.session] for command in asking]
        tenants = [self._memory.look(seat.context.tenant) for seat in seats]
        rows = self._offers.rows([seat.history for seat in seats], tenants)
        trie = merge_rows(rows)
        keys = self._payoff.keys(rows.evidence, trie.siblings)
        drafts, drafted = cut(
            rows,
            trie,
            self._worth(asking, seats, rows, trie, keys),
            [min(command.max_nodes or _ALL, seat.nodes or _ALL) for command, seat in zip(asking, seats, strict=True)],
            self._name,
        )
        keys[trie.again | (rows.tokens < 0)] = -1
        for i, seat in enumerate(seats):
            seat.offered = _Offered(rows.tokens[i], keys[i], drafted[i])
        self._tally.drafted(drafted)
        return drafts

    def _worth(self, asking: Sequence[Propose], seats: Sequence[_Seat], rows: Rows, trie: Trie, keys: Counts) -> Shares:
        """Tokens that each node is expected to bring, [S, K, W]; 0 for one that is not to be drafted."""
        depths = np.array([command.max_tokens for command in asking])
        if not self._tune:
            new = np.cumsum(trie.own.any(-1), -1) <= self._rows  # rows that add nothing do not count
            width = rows.tokens.shape[-1]
            first = 1.0 / (1.0 + np.arange(rows.tokens.shape[1])[:, None] * width + np.arange(width))
            return np.where(new[:, :, None] & (np.arange(width) < depths[:, None, None]), first, 0.0)
        rates = self._payoff.rates(keys, np.stack([seat.record for seat in seats]))
        worth = values(trie, rates, depths, np.array([seat.branches or _ALL for seat in seats]))
        prices = np.array([command.price for command in asking])
        return np.where(worth >= prices[:, None, None], worth, 0.0)

    def _leave(self, session: int) -> None:
        """A session ends. What is kept of it is its output, unless it is private."""
        seat = self._sessions.pop(session, None)
        if seat is not None and self._learns and not seat.context.private:
            output = seat.history.tail(max(seat.history.length - seat.prompt_len, 0))
            if len(output):
                self._memory.keep(seat.context.tenant, output)

    def _forget(self) -> None:
        if len(self._sessions) > self._max_sessions:
            waiting = {command.session for command in self._queue}
            quiet = next((session for session in self._sessions if session not in waiting), None)
            if quiet is not None:
                self._leave(quiet)
