"""Rounds of one target and one drafter in this process: no Ray, no gRPC, sessions in batches."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from specserve.draft.ar import ArDrafter
from specserve.engine import Engine, Verifier
from specserve.errors import EngineError
from specserve.serving.backend import Backend
from specserve.transport import wire
from specserve.types import (
    Close,
    Draft,
    Proposal,
    Propose,
    Reply,
    Sampling,
    SessionSpec,
    SparseLaw,
    TokenIds,
    Verdict,
    Verify,
)

MOST_NODES = 64
_FIRST_ID = 1 << 62  # ids as long as a router's: they count in the bytes of a message


@dataclass(frozen=True, slots=True)
class Way:
    """One way to draft and to verify.

    branches: chains drawn i.i.d., or most children of a node; nodes: most drafted nodes of a round.
    """

    name: str
    rule: str
    branches: int = 1
    depth: int = 8
    nodes: int = MOST_NODES


@dataclass(frozen=True, slots=True)
class Job:
    """One sample of one prompt."""

    prompt: int
    tokens: TokenIds
    sampling: Sampling


@dataclass(slots=True)
class Played:
    """What became of a job. The round that takes the prompt in has no draft, and is not counted.

    `openings` are (committed length, law of the first drafted token) of every round whose draft has laws.
    """

    job: Job
    tokens: list[int]
    rounds: int = 0
    emitted: int = 0
    nodes: int = 0
    started: int = 0  # rounds that accepted something
    openings: list[tuple[int, SparseLaw]] = field(default_factory=list)


@dataclass(slots=True)
class Cost:
    """Of all rounds of one way together. Bytes are of messages, without the frames of gRPC."""

    draft_s: float = 0.0
    verify_s: float = 0.0
    forward_s: float = 0.0
    bytes: int = 0


class Pair:
    """A verifier and a drafter that hand each other what a router would carry between them.

    Args:
        target, drafter: Hugging Face directories with one vocabulary.
        sessions: most at once.
    """

    def __init__(self, target: Path, drafter: Path, *, sessions: int, device: str = "cpu", dtype: str = "float32"):
        def engine(model: Path) -> Engine:
            context = 2048
            return Engine(
                model, device=device, dtype=dtype, slots=sessions * (context + MOST_NODES), max_nodes=MOST_NODES
            )

        self.engine = engine(target)
        self.facts = self.engine.facts()
        batch = sessions * 2 * MOST_NODES
        self._verifier = Verifier(self.engine, max_batch_tokens=batch)
        self._drafter = ArDrafter(
            engine(drafter), max_tokens=16, vocab_size=self.facts.vocab_size, max_batch_tokens=batch
        )

    def room(self, max_tokens: int) -> int:
        """Longest prompt that leaves room for `max_tokens` and one round more."""
        return min(self.facts.context_len, 2048) - max_tokens - 32

    def play(self, way: Way, jobs: Sequence[Job], max_tokens: int, cost: Cost) -> list[Played]:
        """Generate for all jobs together, until each has `max_tokens` or its end.

        No round is cut short by `max_tokens`: the last one counts whole, so that every round is a fair sample.
        """
        played = [Played(job, list(job.tokens)) for job in jobs]
        live = dict(enumerate(played, _FIRST_ID))
        specs = {
            id: SessionSpec(
                p.job.sampling, len(p.tokens), len(p.tokens) + max_tokens + 32, way.rule, way.branches, way.nodes
            )
            for id, p in live.items()
        }
        try:
            ask(self._drafter, [Propose(id, 0, p.job.tokens, 0, specs[id]) for id, p in live.items()])
            told = {id: len(p.tokens) for id, p in live.items()}
            first = [Verify(id, 0, p.job.tokens, Draft(), specs[id]) for id, p in live.items()]
            for verdict in verdicts_of(ask(self._verifier, first)):
                live[verdict.session].tokens.append(verdict.token)
            live = {id: p for id, p in live.items() if p.tokens[-1] not in self.facts.eos_token_ids}
            while live:
                self._round(way, live, told, cost)
                live = {id: p for id, p in live.items() if not self._over(p, max_tokens)}
        finally:
            for id in specs:
                self._verifier.submit(Close(id))
                self._drafter.submit(Close(id))
        return played

    def _round(self, way: Way, live: dict[int, Played], told: dict[int, int], cost: Cost) -> None:
        wishes = [Propose(id, told[id], tuple(p.tokens[told[id] :]), way.depth) for id, p in live.items()]
        start = time.perf_counter()
        replies = ask(self._drafter, wishes)
        drafted = time.perf_counter()
        drafts = {reply.session: reply.draft for reply in replies if isinstance(reply, Proposal)}
        asked = [Verify(id, len(p.tokens), (), drafts[id]) for id, p in live.items()]
        again = time.perf_counter()
        verdicts = verdicts_of(ask(self._verifier, asked))
        cost.verify_s += time.perf_counter() - again
        cost.draft_s += drafted - start
        cost.forward_s += sum(verdict.forward_s / verdict.batch for verdict in verdicts)
        sent = wire.encode_commands(wishes).ByteSize() + wire.encode_commands(asked).ByteSize()
        cost.bytes += sent + wire.encode_replies([*replies, *verdicts]).ByteSize()
        for verdict in verdicts:
            played = live[verdict.session]
            told[verdict.session] = len(played.tokens)
            self._take(played, drafts[verdict.session], verdict)

    def _take(self, played: Played, draft: Draft, verdict: Verdict) -> None:
        if draft.laws:
            played.openings.append((len(played.tokens), draft.laws[0]))
        new = [*(draft.tokens[node] for node in verdict.accepted), verdict.token]
        ends = (i for i, token in enumerate(new, 1) if token in self.facts.eos_token_ids)
        new = new[: next(ends, len(new))]
        played.tokens += new
        played.rounds += 1
        played.emitted += len(new)
        played.nodes += len(draft)
        played.started += bool(verdict.accepted)

    def _over(self, played: Played, max_tokens: int) -> bool:
        written = len(played.tokens) - len(played.job.tokens)
        return written >= max_tokens or played.tokens[-1] in self.facts.eos_token_ids


def ask(backend: Backend, commands: Sequence[Propose | Verify]) -> list[Reply]:
    """The reply to every command."""
    replies = [reply for command in commands for reply in backend.submit(command)]
    while len(replies) < len(commands):
        replies += backend.step()
    return replies


def verdicts_of(replies: Sequence[Reply]) -> list[Verdict]:
    """Verdicts, all of them. Raises EngineError when the target failed."""
    for reply in replies:
        if not isinstance(reply, Verdict):
            raise EngineError(f"the target gave no verdict: {reply}")
    return [reply for reply in replies if isinstance(reply, Verdict)]
