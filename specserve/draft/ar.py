"""Drafts from a small autoregressive model, batched over sessions, under the target's own noise."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from specserve.engine.engine import Engine
from specserve.engine.layout import Row
from specserve.engine.schedule import Turns, fit
from specserve.errors import ConfigError, InvalidRequest, SpecserveError
from specserve.types import Close, Command, Draft, Failed, Proposal, Propose, Reply, SessionLost, SessionSpec, Verify
from specserve.verify import Prefix, sample


@dataclass(slots=True)
class _Seat:
    """A session: committed tokens; ids whose keys and values the engine holds, drafted ones included; depth wanted."""

    spec: SessionSpec
    tokens: list[int] = field(default_factory=list)
    cached: list[int] = field(default_factory=list)
    agreed: int = 0  # cached and committed ids are known to be equal up to here
    want: int | None = None


class ArDrafter:
    """Backend of an AR drafter replica (see serving.backend). Owns its engine.

    Each proposal is one chain: y = argmax(log q + g) with the noise the target will use at that position.
    Keys and values of drafted tokens stay until the next Propose shows which of them were accepted.
    A Propose that arrives while the session's last one still waits replaces it: only the newer is answered.

    Args:
        engine: the small model; its `max_nodes` must be at least `max_tokens`.
        name: credited for every drafted token.
        max_tokens: deepest chain, whatever a Propose asks for.
        min_confidence: stop a chain after the token that takes the product of the drafter's own
            probabilities below this; 0 never stops. Looks at drafted tokens only, never at what would follow.
        vocab_size: propose only ids below this (the target's vocabulary); None for the engine's own.
        prefill_chunk: tokens of prompts per step.
        max_batch_tokens: tokens (padding included) in the first pass of a batch of chains.
        round_tokens: a session with more pending tokens than this is taken in as a prompt first.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        name: str = "ar",
        max_tokens: int = 8,
        min_confidence: float = 0.0,
        vocab_size: int | None = None,
        prefill_chunk: int = 512,
        max_batch_tokens: int = 1024,
        round_tokens: int = 32,
    ) -> None:
        if not 1 <= max_tokens <= engine.max_nodes:
            raise ConfigError(
                f"max_tokens must be between 1 and the engine's max_nodes {engine.max_nodes}; got {max_tokens}"
            )
        if not 0 <= min_confidence < 1:
            raise ConfigError(f"min_confidence must be at least 0 and below 1; got {min_confidence}")
        self.engine = engine
        self._name, self._most, self._floor = name, max_tokens, min_confidence
        self._vocab = min(vocab_size or engine.facts().vocab_size, engine.facts().vocab_size)
        self._chunk, self._limit, self._round = prefill_chunk, max_batch_tokens, min(round_tokens, prefill_chunk)
        self._seats: dict[int, _Seat] = {}
        self._waiting: dict[int, None] = {}  # in order of arrival
        self._turns = Turns()
        self._counts = {"tokens_seen": 0.0, "tokens_drafted": 0.0, "busy_s": 0.0}

    def submit(self, command: Command) -> Sequence[Reply]:
        """Take one command in. Replies here are the ones that need no forward pass."""
        session = command.session
        try:
            if isinstance(command, Close):
                self._forget(session)
                return ()
            if isinstance(command, Verify):
                raise InvalidRequest("command", "must be Propose or Close at a drafter", "Verify")
            return self._propose(command)
        except SpecserveError as error:
            self._forget(session)
            return [Failed(session, type(error).__name__, str(error))]

    def step(self) -> Sequence[Reply]:
        """Take in one piece of the waiting prompts, or draft for all waiting sessions that fit."""
        pending = {session: len(self._seats[session].tokens) - self.engine.held(session) for session in self._waiting}
        prompts = [session for session, count in pending.items() if count > self._round]
        rounds = [session for session, count in pending.items() if count <= self._round]
        if not pending:
            return ()
        start = time.perf_counter()
        if self._turns.prompt(bool(rounds), bool(prompts)):
            self._take_in(prompts[: fit([min(pending[s], self._chunk) for s in prompts], self._chunk)])
            replies: list[Reply] = []
            self._counts["busy_s"] += time.perf_counter() - start
        else:
            taken = rounds[: fit([max(1, pending[s]) for s in rounds], self._limit)]
            drafts = self._draft(taken)
            seconds = time.perf_counter() - start
            self._counts["busy_s"] += seconds
            replies = [Proposal(s, len(self._seats[s].tokens), draft, seconds) for s, draft in drafts.items()]
        return replies

    @property
    def busy(self) -> bool:
        """Whether a session waits for its draft."""
        return bool(self._waiting)

    def stats(self) -> dict[str, float]:
        """The engine's gauges, sessions waiting, tokens taken in and drafted, seconds of work."""
        return {**self.engine.stats(), "waiting": float(len(self._waiting)), **self._counts}

    def _propose(self, command: Propose) -> Sequence[Reply]:
        session, seat = command.session, self._seats.get(command.session)
        limit = self.engine.facts().context_len
        if command.base_len == 0 and command.spec is not None:
            if seat is None or seat.spec.max_len != command.spec.max_len:
                self._forget(session)
                self.engine.open(session, min(command.spec.max_len, limit))
                seat = self._seats[session] = _Seat(command.spec)
            seat.spec, seat.tokens, seat.agreed = command.spec, [], 0
        elif seat is None or len(seat.tokens) != command.base_len:
            return [SessionLost(session, 0 if seat is None else len(seat.tokens))]
        self._commit(session, seat, command.tokens)
        if len(seat.tokens) > min(seat.spec.max_len, limit):  # nothing to draft from; that costs speed alone
            self._waiting.pop(session, None)
            return [Proposal(session, len(seat.tokens), Draft())]
        seat.want = max(0, min(command.max_tokens, self._most, limit - len(seat.tokens)))
        self._waiting[session] = None
        return ()

    def _commit(self, session: int, seat: _Seat, tokens: Sequence[int]) -> None:
        """Append committed tokens; keep what the engine holds of them already, but one to get a law from."""
        size = self.engine.facts().vocab_size
        wrong = next((t for t in tokens if not 0 <= t < size), None)
        if wrong is not None:
            raise InvalidRequest("token_ids", f"must be between 0 and {size - 1}, the drafter's vocabulary", wrong)
        seat.tokens.extend(tokens)
        if not seat.tokens:
            raise InvalidRequest("tokens", "must hold at least one token", 0)
        common = seat.agreed
        for mine, theirs in zip(seat.cached[common:], seat.tokens[common:], strict=False):
            if mine != theirs:
                break
            common += 1
        seat.agreed = min(common, len(seat.tokens) - 1)
        del seat.cached[seat.agreed :]
        self.engine.truncate(session, seat.agreed)

    def _take_in(self, sessions: Sequence[int]) -> None:
        """A piece of each prompt, no law wanted. The last token is left for the pass that drafts."""
        rows = []
        for session in sessions:
            seat, held = self._seats[session], self.engine.held(session)
            stop = min(held + self._chunk, len(seat.tokens) - 1)
            rows.append(Row(session, seat.tokens[held:stop], logits=False))
        self.engine.forward(rows)
        for row in rows:
            self._note(row.session, row.tokens)

    def _draft(self, sessions: Sequence[int]) -> dict[int, Draft]:
        """Take in what is pending, then draft in lock-step for the sessions that want any.

        The last committed token is the chain's first step: mostly it is all that is pending, and then one
        gather serves the whole proposal.
        """
        depths = {session: self._seats[session].want or 0 for session in sessions}
        rows = []
        for session, depth in depths.items():
            seat, held = self._seats[session], self.engine.held(session)
            stop = len(seat.tokens) - (depth > 0)
            if held < stop:
                rows.append(Row(session, seat.tokens[held:stop], logits=False))
            seat.want = None
            del self._waiting[session]
        if rows:
            self.engine.forward(rows)
            for row in rows:
                self._note(row.session, row.tokens)
        drafts = dict.fromkeys(sessions, Draft())
        live = {session: depth for session, depth in depths.items() if depth}
        if live:
            chains = self._chains(list(live), list(live.values()))
            drafts.update((s, Draft.chain(chain, self._name)) for s, chain in zip(live, chains, strict=True))
            self._counts["tokens_drafted"] += sum(map(len, chains))
        return drafts

    def _chains(self, sessions: Sequence[int], depths: Sequence[int]) -> list[tuple[int, ...]]:
        """One chain per session, at most as deep as asked; all but the last committed token must be taken in."""
        seats = [self._seats[session] for session in sessions]
        specs = [seat.spec for seat in seats]
        paths: list[tuple[int, ...]] = [()] * len(seats)
        lengths, trust = list(depths), [1.0] * len(seats)
        tokens = torch.tensor([seat.tokens[-1] for seat in seats], device=self.engine.device)
        depth = 0
        with self.engine.chain(sessions, max(depths)) as chain:
            while depth < max(lengths):
                depth += 1
                logits = chain.step(tokens)[:, : self._vocab]
                prefixes = [Prefix(seat.tokens, path) for seat, path in zip(seats, paths, strict=True)]
                tokens = sample(logits, specs, prefixes)
                paths = [(*path, token) for path, token in zip(paths, tokens.tolist(), strict=True)]
                if self._floor:
                    own = logits.float().softmax(-1).gather(1, tokens[:, None])[:, 0].tolist()
                    trust = [so_far * p for so_far, p in zip(trust, own, strict=True)]
                    lengths = [min(n, depth) if t < self._floor else n for n, t in zip(lengths, trust, strict=True)]
        for session, seat, path in zip(sessions, seats, paths, strict=True):
            self._note(session, seat.tokens[-1:])
            seat.cached += path[:-1]  # the last drafted token was not fed
        return [path[:length] for path, length in zip(paths, lengths, strict=True)]

    def _note(self, session: int, tokens: Sequence[int]) -> None:
        """The engine holds these committed tokens now."""
        seat = self._seats[session]
        seat.cached += tokens
        seat.agreed = len(seat.cached)
        self._counts["tokens_seen"] += len(tokens)

    def _forget(self, session: int) -> None:
        self._seats.pop(session, None)
        self._waiting.pop(session, None)
        self.engine.close(session)
