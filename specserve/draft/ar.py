"""Drafts from a small autoregressive model, batched over sessions: what the session's rule needs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from specserve.draft import chains
from specserve.draft.plan import Plan, deterministic, looks
from specserve.draft.siblings import draw_siblings
from specserve.draft.temper import Temper
from specserve.draft.tree import Tree, grow
from specserve.engine.engine import Engine
from specserve.engine.layout import Row
from specserve.engine.schedule import Turns, fit
from specserve.errors import ConfigError, InvalidRequest, SpecserveError
from specserve.types import Close, Command, Draft, Failed, Proposal, Propose, Reply, SessionLost, SessionSpec
from specserve.verify import lookup_rule


@dataclass(slots=True)
class _Seat:
    """A session: committed tokens; ids whose keys and values the engine holds, drafted ones included; depth wanted;
    the last tree and the committed length it hangs on."""

    spec: SessionSpec
    tokens: list[int] = field(default_factory=list)
    cached: list[int] = field(default_factory=list)
    agreed: int = 0  # cached and committed ids are known to be equal up to here
    want: int | None = None
    tree: tuple[int, Tree] | None = None


class ArDrafter:
    """Backend of an AR drafter replica (see serving.backend). Owns its engine.

    What a proposal is, is for the session's rule to say:

    - `coupled`: the chain y = argmax(log q + g) with the noise the target will use there; with branches, the tree of
      the best few of log q + g, best-first (see tree.grow). `trie`: the greedy chain.
    - `rejection`, `block`: one chain drawn from laws of at most 64 ids, which go along.
    - `kseq`, `recursive`, `traversal`: `branches` such chains, i.i.d., merged; `-wor` variants: a tree of siblings
      drawn without replacement. At temperature 0 all of these are the greedy chain.

    Keys and values of a single chain stay until the next Propose shows which of its tokens were accepted.
    A Propose that arrives while the session's last one still waits replaces it: only the newer is answered.

    Args:
        engine: the small model; its `max_nodes` must be at least `max_tokens`.
        name: credited for every drafted token.
        max_tokens: deepest draft, whatever a Propose asks for.
        branches: where a session leaves it open: chains drawn i.i.d., or most children of a node.
        max_nodes: where a session leaves it open: most nodes of a draft; None for the engine's own.
        min_confidence: stop a chain after the token that takes the product of the drafter's own
            probabilities below this; 0 never stops. Looks at drafted tokens only, never at what would follow.
            In a tree of rule `coupled` it is the estimated acceptance of a path that counts.
        vocab_size: propose only ids below this (the target's vocabulary); None for the engine's own.
        prefill_chunk: tokens of prompts per step.
        max_batch_tokens: tokens (padding included) in a pass that drafts; one session is always taken.
        round_tokens: a session with more pending tokens than this is taken in as a prompt first.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        name: str = "ar",
        max_tokens: int = 8,
        branches: int = 1,
        max_nodes: int | None = None,
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
        if branches < 1:
            raise ConfigError(f"branches must be at least 1; got {branches}")
        if max_nodes is not None and not 1 <= max_nodes <= engine.max_nodes:
            raise ConfigError(
                f"max_nodes must be between 1 and the engine's max_nodes {engine.max_nodes}; got {max_nodes}"
            )
        if not 0 <= min_confidence < 1:
            raise ConfigError(f"min_confidence must be at least 0 and below 1; got {min_confidence}")
        self.engine = engine
        self._name, self._most, self._floor = name, max_tokens, min_confidence
        self._branches, self._nodes = branches, max_nodes or engine.max_nodes
        self._vocab = min(vocab_size or engine.facts().vocab_size, engine.facts().vocab_size)
        self._chunk, self._limit, self._round = prefill_chunk, max_batch_tokens, min(round_tokens, prefill_chunk)
        self._seats: dict[int, _Seat] = {}
        self._waiting: dict[int, None] = {}  # in order of arrival
        self._turns = Turns()
        self._temper = Temper()
        self._counts = {"tokens_seen": 0.0, "tokens_drafted": 0.0, "busy_s": 0.0}

    def submit(self, command: Command) -> Sequence[Reply]:
        """Take one command in. Replies here are the ones that need no forward pass."""
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
        """Take in one piece of the waiting prompts, or draft for all waiting sessions that fit."""
        pending = {session: len(self._seats[session].tokens) - self.engine.held(session) for session in self._waiting}
        prompts = [session for session, count in pending.items() if count > self._round]
        rounds = [session for session, count in pending.items() if count <= self._round]
        if not pending:
            return ()
        start = time.perf_counter()
        if self._turns.prompt(bool(rounds), bool(prompts)):
            self._take_in(
                prompts[: fit([min(pending[s], self._chunk) for s in prompts], self._chunk, self.engine.packs)]
            )
            replies: list[Reply] = []
            self._counts["busy_s"] += time.perf_counter() - start
        else:
            taken = rounds[: fit([max(1, pending[s]) + self._width(s) for s in rounds], self._limit, self.engine.packs)]
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
            lookup_rule(command.spec.rule)
            if seat is None or seat.spec.max_len != command.spec.max_len:
                self._forget(session)
                self.engine.open(session, min(command.spec.max_len, limit))
                seat = self._seats[session] = _Seat(command.spec)
            seat.spec, seat.tokens, seat.agreed, seat.tree = command.spec, [], 0, None
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
        if seat.tree is not None and len(seat.tokens) > seat.tree[0]:
            at, tree = seat.tree
            tree.teach(self._temper, seat.tokens[at:])
            seat.tree = None
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
        """Take in what is pending, then draft together for the sessions that want the same kind of draft."""
        kinds: dict[str, list[Plan]] = {}
        rows = []
        for session in sessions:
            seat, held = self._seats[session], self.engine.held(session)
            stop = len(seat.tokens)
            if seat.want:
                plan = self._plan(session)
                kinds.setdefault(kind := plan.kind, []).append(plan)
                # The last committed token is the first step of a chain: mostly it is all that is pending, and then
                # one gather serves the whole proposal. A tree takes in all that is pending with its first look.
                stop = stop - 1 if kind in ("chain", "drawn chain") else held
            if held < stop:
                rows.append(Row(session, seat.tokens[held:stop], logits=False))
            seat.want = None
            del self._waiting[session]
        if rows:
            self.engine.forward(rows)
            for row in rows:
                self._note(row.session, row.tokens)
        drafts = dict.fromkeys(sessions, Draft())
        for kind, plans in kinds.items():
            drafts.update(zip((plan.session for plan in plans), self._make(kind, plans), strict=True))
        self._counts["tokens_drafted"] += sum(map(len, drafts.values()))
        return drafts

    def _plan(self, session: int) -> Plan:
        seat = self._seats[session]
        spec, depth = deterministic(seat.spec), seat.want or 0
        nodes = min(spec.max_draft_nodes or self._nodes, self.engine.max_nodes)
        branches = min(spec.branches or self._branches, nodes)
        return Plan(session, spec, seat.tokens, min(depth, nodes), branches, nodes)

    def _make(self, kind: str, plans: Sequence[Plan]) -> list[Draft]:
        """The drafts of one kind, and the books of what the engine holds then."""
        if kind in ("chain", "drawn chain"):
            pick = chains.coupled if kind == "chain" else chains.drawn(self._name)
            runs = chains.one_chain(self.engine, self._vocab, plans, pick, self._floor)
            for plan, run in zip(plans, runs, strict=True):
                self._note(plan.session, plan.tokens[-1:])
                self._seats[plan.session].cached += run.tokens[:-1]  # the last drafted token was not fed
            return [run.draft(self._name) for run in runs]
        look = looks(self.engine, self._vocab)
        if kind == "tree":
            trees = grow(look, plans, self._temper, self._floor)
            for plan, tree in zip(plans, trees, strict=True):
                self._seats[plan.session].tree = len(plan.tokens), tree
            drafts = [tree.draft(self._name) for tree in trees]
        elif kind == "siblings":
            drafts = draw_siblings(look, plans, self._name)
        else:
            drafts = chains.many_chains(look, plans, self._name, self._floor)
        for plan in plans:
            self._note(plan.session, plan.tokens[len(self._seats[plan.session].cached) :])
        return drafts

    def _width(self, session: int) -> int:
        """Most nodes that a pass feeds for the session besides its pending tokens."""
        if not self._seats[session].want:
            return 0
        plan = self._plan(session)
        return 0 if plan.kind in ("chain", "drawn chain") else plan.nodes

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
