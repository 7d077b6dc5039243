"""Rounds of an n-gram drafter in this process, against a text that is known or a target that is real."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from specserve.draft.ngram import NgramDrafter
from specserve.engine import Engine, Row, Verifier
from specserve.serving.drafting import follow
from specserve.serving.policy import Policy
from specserve.types import (
    Close,
    Draft,
    DraftContext,
    Proposal,
    Propose,
    Sampling,
    SessionSpec,
    SpeculationMode,
    TokenIds,
    Verdict,
    Verify,
)

NAME = "ngram"
DEPTH = 16
MOST_NODES = 64
Curve = Callable[[int], float]


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt and what the target writes after it at `sampling`."""

    prompt: TokenIds
    output: TokenIds
    sampling: Sampling
    reference: TokenIds = ()


@dataclass(slots=True)
class Tally:
    """Of all rounds of one arm. `taken[row][depth]` counts rounds whose accepted path ended in that row, so deep."""

    calls: int = 0
    emitted: int = 0
    nodes: int = 0
    verify_s: float = 0.0
    draft_s: float = 0.0
    taken: list[list[int]] = field(default_factory=list)

    @property
    def tokens_per_call(self) -> float:
        return self.emitted / self.calls

    @property
    def tokens_per_s(self) -> float:
        return self.emitted / (self.verify_s + self.draft_s)

    def took(self, draft: Draft, accepted: TokenIds) -> None:
        """One round's path. Nodes that do not continue the one before them begin a row."""
        self.calls += 1
        self.emitted += len(accepted) + 1
        self.nodes += len(draft)
        if accepted:
            last = accepted[-1]
            row = sum(draft.parents[node] != node - 1 for node in range(1, last + 1))
            while len(self.taken) <= row:
                self.taken.append([0] * DEPTH)
            self.taken[row][min(len(accepted), DEPTH) - 1] += 1


class Judge(Protocol):
    """Verdicts on drafts of one session at a time. `seconds` is what the call took, or would take."""

    def open(self, text: Text) -> None:
        """A session of this text begins; its first token is already there."""

    def verify(self, tokens: Sequence[int], draft: Draft) -> tuple[Verdict, float]:
        """The verdict after the committed tokens, and seconds."""

    def close(self) -> None:
        """The session has ended."""


class Known:
    """Judges by a text that the target is known to write. Seconds come from a curve measured before."""

    def __init__(self, curve: Curve) -> None:
        self._curve = curve

    def open(self, text: Text) -> None:
        self._text = (*text.prompt, *text.output)

    def verify(self, tokens: Sequence[int], draft: Draft) -> tuple[Verdict, float]:
        text, at = self._text, len(tokens)
        accepted: list[int] = []
        node = -1
        for child, parent in enumerate(draft.parents):
            if (
                parent == node
                and at + len(accepted) < len(text) - 1
                and draft.tokens[child] == text[at + len(accepted)]
            ):
                node = child
                accepted.append(child)
        seconds = self._curve(1 + len(draft))
        verdict = Verdict(0, at, tuple(accepted), text[at + len(accepted)], forward_s=seconds, positions=1 + len(draft))
        return verdict, seconds

    def close(self) -> None:
        pass


class Scripted(Known):
    """Judges by a text that is known and need not be the target's own, on the wall clock of the target's passes."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(lambda tokens: 0.0)
        self._engine, self._session = engine, 0

    def open(self, text: Text) -> None:
        super().open(text)
        self._session += 1
        self._engine.open(self._session, len(self._text) + DEPTH)
        self._engine.forward([Row(self._session, text.prompt, logits=False)])

    def verify(self, tokens: Sequence[int], draft: Draft) -> tuple[Verdict, float]:
        start = time.perf_counter()
        self._engine.forward([Row(self._session, tokens[self._engine.held(self._session) :], draft)])
        verdict, _ = super().verify(tokens, draft)
        self._engine.commit(self._session, verdict.accepted)
        seconds = time.perf_counter() - start
        return replace(verdict, forward_s=seconds), seconds

    def close(self) -> None:
        self._engine.close(self._session)


class Real:
    """Judges by the target itself, on the wall clock."""

    def __init__(self, verifier: Verifier) -> None:
        self._verifier, self._session = verifier, 0

    def open(self, text: Text) -> None:
        self._session += 1
        spec = SessionSpec(text.sampling, len(text.prompt), len(text.prompt) + len(text.output) + DEPTH + 2)
        self._ask(Verify(self._session, 0, text.prompt, Draft(), spec))

    def verify(self, tokens: Sequence[int], draft: Draft) -> tuple[Verdict, float]:
        start = time.perf_counter()
        verdict = self._ask(Verify(self._session, len(tokens), (), draft))
        return verdict, time.perf_counter() - start

    def close(self) -> None:
        self._verifier.submit(Close(self._session))

    def _ask(self, command: Verify) -> Verdict:
        replies = list(self._verifier.submit(command))
        while not replies:
            replies = list(self._verifier.step())
        assert isinstance(replies[0], Verdict), replies[0]
        return replies[0]


class Player:
    """Plays one text after the other, each a session.

    Args:
        drafter: None for plain decoding.
        tuned: whether a router's policy says when to draft and at what price; else every round is drafted whole.
    """

    def __init__(self, drafter: NgramDrafter | None, judge: Judge, *, tuned: bool = False) -> None:
        self.tally, self._sessions = Tally(), 0
        self._drafter, self._judge, self._tuned = drafter, judge, tuned
        self._policy = Policy([NAME], max_nodes=MOST_NODES, sizing=[NAME])

    def play(self, text: Text) -> None:
        drafter, judge, tally = self._drafter, self._judge, self.tally
        self._sessions += 1
        judge.open(text)
        tokens, end = [*text.prompt, text.output[0]], len(text.prompt) + len(text.output)
        asker = _Asker(drafter, self._sessions, text, self._policy, self._tuned) if drafter is not None else None
        while len(tokens) < end:
            start = time.perf_counter()
            draft, patient = asker.draft(tokens, min(DEPTH, end - len(tokens))) if asker else (Draft(), False)
            seconds = time.perf_counter() - start
            verdict, took = judge.verify(tokens, draft)
            tally.verify_s += took
            tally.draft_s += seconds if patient else 0.0
            tokens += (*(draft.tokens[node] for node in verdict.accepted), verdict.token)
            tally.took(draft, verdict.accepted)
            if asker:
                asker.learn(tokens, verdict, took)
        judge.close()
        if drafter is not None:
            drafter.submit(Close(self._sessions))


def play(texts: Sequence[Text], drafter: NgramDrafter | None, judge: Judge, *, tuned: bool = False) -> Tally:
    """All of them, by one player."""
    player = Player(drafter, judge, tuned=tuned)
    for text in texts:
        player.play(text)
    return player.tally


class _Asker:
    """What a router does between two verdicts of a session with one drafter."""

    def __init__(self, drafter: NgramDrafter, session: int, text: Text, policy: Policy, tuned: bool) -> None:
        self._drafter, self._session, self._tuned = drafter, session, tuned
        self._policy = policy.session(SpeculationMode.AUTO, [NAME])
        self._held, self._asked = 0, (0, Draft())
        self._spec = SessionSpec(text.sampling, len(text.prompt), len(text.prompt) + len(text.output))
        self._context = DraftContext(text.reference) if text.reference else None

    def draft(self, tokens: list[int], depth: int) -> tuple[Draft, bool]:
        """The draft to verify, and whether the round waited for one."""
        price, patience = 0.0, 1.0
        if self._tuned:
            asks = self._policy.plan([(NAME, depth)])
            if not asks:
                return Draft(), False
            depth, price, patience = asks[0].depth, asks[0].price, asks[0].patience
        opening = (self._spec, MOST_NODES, price, self._context) if self._held == 0 else (None, MOST_NODES, price)
        nodes = MOST_NODES if self._tuned else 0
        self._drafter.submit(
            Propose(self._session, self._held, tuple(tokens[self._held :]), depth, opening[0], nodes, *opening[2:])
        )
        (reply,) = self._drafter.step()
        assert isinstance(reply, Proposal)
        self._held = len(tokens)
        self._asked = (len(tokens), reply.draft)
        if self._tuned:
            self._policy.drafted(NAME, depth, len(reply.draft), reply.compute_s, False)
        return (reply.draft if patience else Draft()), patience > 0

    def learn(self, tokens: list[int], verdict: Verdict, seconds: float) -> None:
        """A round has been verified."""
        self._policy.verified(verdict, seconds)
        at, draft = self._asked
        if at and draft.tokens:
            score = follow(draft, tokens, at)
            if score is not None:
                self._policy.scored(NAME, *score)
            self._asked = (0, Draft())
