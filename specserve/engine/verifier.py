"""The verifier's worker: sessions of the target, rounds in batches, long prompts in pieces."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from torch import Tensor

from specserve.engine.ahead import Ahead, Asked, HiddenDrafter
from specserve.engine.engine import Engine, Scores
from specserve.engine.grammar import Grammar, Grammars, prunes
from specserve.engine.layout import Row
from specserve.engine.schedule import Turns, fit
from specserve.errors import EngineError, InvalidRequest, Overloaded, SpecserveError
from specserve.types import (
    Close,
    Command,
    Draft,
    Failed,
    Reply,
    SessionLost,
    SessionSpec,
    TokenIds,
    Verdict,
    Verify,
)
from specserve.verify import Case, Outcome, decide, lookup_rule

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Seat:
    """A session: all its committed tokens, and the draft that waits for its verdict.

    Of a constrained one: where its grammar stands, and for this round the nodes of the draft as sent that `draft` kept
    and the tokens allowed after each. `ahead` is how deep the next round's draft may be that the verdict is to carry.
    """

    spec: SessionSpec
    tokens: list[int] = field(default_factory=list)
    draft: Draft | None = None
    grammar: Grammar | None = None
    kept: TokenIds = ()
    masks: Tensor | None = None
    ahead: int = 0


class _Pass(NamedTuple):
    """What a forward pass took."""

    seconds: float
    batch: int  # sessions
    positions: int  # tokens of all sessions


class Verifier:
    """Backend of a verifier replica (see serving.backend). Owns its engine.

    A step runs one forward pass: all waiting rounds that fit, or one piece of the waiting prompts, in turns.
    A session whose first Verify finds the pool full waits inside, first come first served; while
    `stats()["queued"]` is above 0, look at `busy` again from time to time: waiting can end by the clock alone.

    Args:
        engine: the target.
        prefill_chunk: tokens of prompts per step.
        max_batch_tokens: tokens per step of rounds, padding included where the engine pads; one row is always taken.
        round_tokens: a row with more pending tokens than this counts as a prompt.
        queue_timeout_s: how long a session may wait for slots before it fails as Overloaded.
        clock: seconds, monotonic.
        grammars: for constrained sessions; None refuses them.
        drafter: makes the drafts that verdicts are to carry; None leaves them out.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        prefill_chunk: int = 256,
        max_batch_tokens: int = 1024,
        round_tokens: int = 32,
        queue_timeout_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
        grammars: Grammars | None = None,
        drafter: HiddenDrafter | None = None,
    ) -> None:
        self.engine, self._grammars = engine, grammars
        self._chunk, self._limit, self._round = prefill_chunk, max_batch_tokens, min(round_tokens, prefill_chunk)
        self._timeout, self._clock = queue_timeout_s, clock
        self._seats: dict[int, _Seat] = {}
        self._queued: dict[int, float] = {}  # waiting for slots: deadline, in order of arrival
        self._waiting: dict[int, None] = {}  # has slots and waits for its verdict, in order of arrival
        self._turns = Turns()
        self._ahead = Ahead(drafter, engine.facts().context_len)
        self._counts = {"tokens_seen": 0.0, "forwards": 0.0, "busy_s": 0.0, "grammar_s": 0.0}

    def submit(self, command: Command) -> Sequence[Reply]:
        """Take one command in. Replies here are the ones that need no forward pass."""
        session = command.session
        try:
            if isinstance(command, Close):
                self._forget(session)
                return ()
            if not isinstance(command, Verify):
                raise InvalidRequest("command", "must be Verify or Close at a verifier", type(command).__name__)
            return self._verify(command)
        except SpecserveError as error:
            self._forget(session)
            return [_failed(session, error)]

    def step(self) -> Sequence[Reply]:
        """Let queued sessions in, then run one batch."""
        replies = self._admit()
        prompts = [s for s in self._waiting if self._pending(s) > self._round]
        rounds = [s for s in self._waiting if self._pending(s) <= self._round]
        if self._turns.prompt(bool(rounds), bool(prompts)):
            return [*replies, *self._run(prompts, self._chunk)]
        return [*replies, *self._run(rounds, self._limit)] if rounds else replies

    @property
    def busy(self) -> bool:
        """Whether a row waits for its forward pass, or a queued session can be let in or has waited too long."""
        return bool(self._waiting) or any(
            self.engine.room(self._seats[session].spec.max_len) or self._clock() >= deadline
            for session, deadline in list(self._queued.items())[:1]
        )

    def stats(self) -> dict[str, float]:
        """The engine's gauges, sessions queued and waiting, tokens and passes run, seconds in the model."""
        own = {"queued": float(len(self._queued)), "waiting": float(len(self._waiting))}
        return {**self.engine.stats(), **own, **self._counts, **self._ahead.counts}

    def check_integrity(self) -> None:
        """Assert that every session is where it should be, once, and the engine's own books."""
        self.engine.check_integrity()
        open_here = set(self._seats) - set(self._queued)
        assert open_here == self.engine.sessions, "the engine holds other sessions than the verifier"
        assert set(self._waiting) == {s for s in open_here if self._seats[s].draft is not None}
        assert set(self._queued) <= set(self._seats)

    def _verify(self, command: Verify) -> Sequence[Reply]:
        session, seat = command.session, self._seats.get(command.session)
        if command.base_len == 0 and command.spec is not None:
            self._forget(session)
            lookup_rule(command.spec.rule)
            self._ahead.check(command.spec)
            seat = _Seat(command.spec, grammar=self._grammar(command.spec))
        elif seat is None or seat.draft is not None or len(seat.tokens) != command.base_len:
            return [SessionLost(session, 0 if seat is None else len(seat.tokens))]
        self._take(seat, command.tokens)
        seat.draft, seat.ahead = self._usable(session, seat, command.draft), command.next_tokens
        if seat.grammar is not None:
            self._constrain(session, seat, seat.grammar, seat.draft)
        if session not in self._seats:
            self._enter(session, seat)
        else:
            self._waiting[session] = None
        return ()

    def _take(self, seat: _Seat, tokens: Sequence[int]) -> None:
        size = self.engine.facts().vocab_size
        wrong = next((t for t in tokens if not 0 <= t < size), None)
        if wrong is not None:
            raise InvalidRequest("token_ids", f"must be between 0 and {size - 1}", wrong)
        seat.tokens.extend(tokens)
        if not 1 <= len(seat.tokens) <= seat.spec.max_len:
            raise InvalidRequest(
                "tokens", f"must be between 1 and max_len {seat.spec.max_len} tokens", len(seat.tokens)
            )

    def _usable(self, session: int, seat: _Seat, draft: Draft) -> Draft:
        """The draft, or none when it is malformed or too large: a bad drafter can only cost speed."""
        facts = self.engine.facts()
        if not draft.tokens:
            return Draft()
        sound = (
            len(draft) <= self.engine.max_nodes
            and len(draft.parents) == len(draft)
            and all(-1 <= parent < i for i, parent in enumerate(draft.parents))
            and all(0 <= token < facts.vocab_size for token in draft.tokens)
            and len(seat.tokens) + max(draft.depths()) <= facts.context_len
        )
        if not sound:
            log.warning("%s draft of %d nodes dropped: malformed, too large or beyond the context", session, len(draft))
        return draft if sound else Draft()

    def _grammar(self, spec: SessionSpec) -> Grammar | None:
        if spec.constraint is None:
            return None
        if self._grammars is None:
            raise InvalidRequest("constraint", "must be unset: this verifier has no tokenizer", spec.constraint.kinds)
        began = time.perf_counter()
        grammar = self._grammars.open(spec.constraint)
        self._counts["grammar_s"] += time.perf_counter() - began
        return grammar

    def _constrain(self, session: int, seat: _Seat, grammar: Grammar, draft: Draft) -> None:
        """Let the grammar catch up with the committed output (with all of it in a rebuilt session); mask the draft."""
        began = time.perf_counter()
        try:
            grammar.advance(seat.tokens[seat.spec.prompt_len + len(grammar) :])
            scan = grammar.scan(draft, prunes(seat.spec))
        except EngineError as error:
            raise EngineError(f"session {session}: {error}") from error
        seat.draft, seat.kept, seat.masks = scan.draft, scan.kept, scan.masks
        self._counts["grammar_s"] += time.perf_counter() - began

    def _enter(self, session: int, seat: _Seat) -> None:
        """Open the session, or queue it behind those that wait already."""
        self.engine.check_fits(seat.spec.max_len)
        if self._timeout <= 0 or (not self._queued and self.engine.room(seat.spec.max_len)):
            self.engine.open(session, seat.spec.max_len)
            self._waiting[session] = None
        else:
            self._queued[session] = self._clock() + self._timeout
        self._seats[session] = seat

    def _admit(self) -> list[Reply]:
        replies: list[Reply] = []
        for session, deadline in list(self._queued.items()):
            max_len = self._seats[session].spec.max_len
            if self.engine.room(max_len):
                del self._queued[session]
                self.engine.open(session, max_len)
                self._waiting[session] = None
            elif self._clock() >= deadline:
                self._forget(session)
                message = f"no room for {max_len} tokens came free within {self._timeout:g} s; try again later"
                replies.append(_failed(session, Overloaded(message)))
            else:
                break
        return replies

    def _run(self, sessions: Sequence[int], limit: int) -> list[Reply]:
        rows = []
        for session in sessions:
            seat, held = self._seats[session], self.engine.held(session)
            piece = seat.tokens[held : held + self._chunk]
            last = held + len(piece) == len(seat.tokens)
            assert seat.draft is not None
            rows.append(Row(session, piece, seat.draft if last else Draft(), logits=last))
        sizes = [len(row.tokens) + len(row.draft) for row in rows]
        rows = rows[: fit(sizes, limit, self.engine.packs)]
        scores = self.engine.forward(rows)
        self._counts["tokens_seen"] += sum(sizes[: len(rows)])
        self._counts["forwards"] += 1
        self._counts["busy_s"] += scores.seconds
        cost = _Pass(scores.seconds, len(rows), sum(sizes[: len(rows)]))
        return self._judge([row.session for row in rows if row.logits], scores, cost)

    def _judge(self, ready: Sequence[int], scores: Scores, cost: _Pass) -> list[Reply]:
        cases = []
        for session in ready:
            seat = self._seats[session]
            assert seat.draft is not None
            cases.append(Case(seat.spec, seat.tokens, seat.draft, seat.masks))
            del self._waiting[session]
        replies: list[Reply] = []
        given: list[Asked] = []
        first = 0
        for session, case, outcome in zip(ready, cases, _decide(scores.logits, cases), strict=True):
            row, first = first, first + case.rows
            if isinstance(outcome, SpecserveError):
                self._forget(session)
                replies.append(_failed(session, outcome))
            elif outcome.fault is not None:
                self._forget(session)
                replies.append(Failed(session, "EngineError", f"session {session}: {outcome.fault}"))
            else:
                reply = self._commit(session, case, outcome, cost)
                if isinstance(reply, Failed):
                    replies.append(reply)
                else:
                    seat = self._seats[session]
                    last = row + 1 + max(outcome.accepted, default=-1)
                    given.append(Asked(reply, seat.spec, seat.tokens, seat.ahead, last))
        return [*replies, *self._ahead.add(given, scores.hidden)]

    def _commit(self, session: int, case: Case, outcome: Outcome, cost: _Pass) -> Verdict | Failed:
        seat, at, accepted = self._seats[session], len(case.tokens), outcome.accepted
        emitted = [*(case.draft.tokens[node] for node in accepted), outcome.token]
        if seat.grammar is not None:
            try:
                seat.grammar.advance(emitted)
            except EngineError as error:
                self._forget(session)
                return Failed(session, "EngineError", f"session {session}: {error}")
            accepted = tuple(seat.kept[node] for node in accepted)
        self.engine.commit(session, outcome.accepted)
        seat.tokens += emitted
        seat.draft = seat.masks = None
        return Verdict(session, at, accepted, outcome.token, outcome.logprobs, *cost)

    def _pending(self, session: int) -> int:
        return len(self._seats[session].tokens) - self.engine.held(session)

    def _forget(self, session: int) -> None:
        self._seats.pop(session, None)
        self._queued.pop(session, None)
        self._waiting.pop(session, None)
        self._ahead.forget(session)
        self.engine.close(session)


def _decide(logits: Tensor, cases: Sequence[Case]) -> Sequence[Outcome | SpecserveError]:
    """All at once; case by case when that raises, and without its draft when that case is to blame."""
    if not cases:
        return []
    try:
        return decide(logits, cases)
    except SpecserveError as error:
        if len(cases) == 1 and not cases[0].draft.tokens:
            return [error]
        if len(cases) == 1:
            log.warning("draft of %d nodes dropped: %s", len(cases[0].draft), error)
            return _decide(logits[:1], [replace(cases[0], draft=Draft())])
    outcomes: list[Outcome | SpecserveError] = []
    for case, rows in zip(cases, logits.split_with_sizes([case.rows for case in cases]), strict=True):
        outcomes += _decide(rows, [case])
    return outcomes


def _failed(session: int, error: SpecserveError) -> Failed:
    return Failed(session, type(error).__name__, str(error))
