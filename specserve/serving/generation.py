"""One request's life: leases, prefill, rounds, and whatever goes wrong in between."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Sequence

from specserve.errors import DeadlineExceeded, SpecserveError, Unavailable
from specserve.serving.drafting import DraftLine
from specserve.serving.hub import Hub
from specserve.serving.mailbox import Mailbox
from specserve.serving.policy import SessionPolicy
from specserve.serving.selfdraft import SelfLine
from specserve.serving.session import Emission, Session
from specserve.serving.settings import DrafterPool, Settings
from specserve.serving.stats import Stats
from specserve.serving.verifying import VerifyLine
from specserve.types import Chunk, Draft, DraftContext, Finished, Round, SessionSpec, Verdict, merge

logger = logging.getLogger(__name__)


class Generation:
    """The rounds of one session, as one task. Events go to `mailbox`: a slow consumer never holds the rounds up.

    Args:
        drafters: pools that the request may draft with, the first credited first.
        max_depth: deepest draft the request allows.
        context: what drafters that copy may know beyond the session's own tokens.
    """

    def __init__(
        self,
        request_id: str,
        session: Session,
        spec: SessionSpec,
        drafters: Sequence[DrafterPool],
        max_depth: int,
        *,
        vocab_size: int,
        context: DraftContext | None = None,
        policy: SessionPolicy,
        hub: Hub,
        settings: Settings,
        stats: Stats,
    ) -> None:
        self.request_id, self.session, self.mailbox = request_id, session, Mailbox()
        self._max_depth = max_depth
        self._policy, self._settings, self._stats = policy, settings, stats
        self._loop = asyncio.get_running_loop()
        self._clock = settings.clock
        self._pending, self._patience = 0, 0.0  # drafts awaited in this round, and for how long
        self._gate: asyncio.Future[None] | None = None
        self.began_s = self._last_s = self._clock()  # of admission; of the last verdict
        self._draft_s = 0.0  # waited for drafts in this round
        self.first_token_s: float | None = None  # from admission
        self._expired = False
        self.outcome = "running"
        id = secrets.randbits(63)  # unique over all routers that share a worker
        self._verifier = VerifyLine(hub, settings, id, session, spec, request_id=request_id, stats=stats)
        self._inside = inside = [
            SelfLine(
                pool,
                settings,
                session,
                max_depth,
                vocab_size=vocab_size,
                settled=self._draft_settled,
                drafted=policy.drafted,
            )
            for pool in drafters
            if pool.inside
        ]
        outside = [
            DraftLine(
                pool,
                hub,
                settings,
                id,
                session,
                spec,
                request_id=request_id,
                vocab_size=vocab_size,
                context=context,
                settled=self._draft_settled,
                drafted=policy.drafted,
                measured=stats.measured.__setitem__,
                died=self._drafter_died,
            )
            for pool in drafters
            if not pool.inside
        ]
        lines: list[DraftLine | SelfLine] = [*outside, *inside]
        order = [pool.name for pool in drafters]
        self._lines = sorted(lines, key=lambda line: order.index(line.name))
        self.task = self._loop.create_task(self._rounds(), name=f"generation {request_id}")
        self.task.add_done_callback(self._end)  # also runs when the task was cancelled before its first step

    def cancel(self) -> None:
        """The consumer is gone."""
        self.task.cancel()

    def expire(self) -> None:
        """The request's time is over."""
        self._expired = True
        self.task.cancel()

    def _end(self, task: asyncio.Task[Finished]) -> None:
        """Give everything back and tell the consumer. Nothing here awaits: it cannot be cancelled half-way."""
        self._verifier.close()
        for line in self._lines:
            line.close()
        if task.cancelled():
            self.outcome = "deadline" if self._expired else "cancelled"
            late = DeadlineExceeded("timeout_ms ran out; allow more time or fewer max_tokens")
            self.mailbox.end(late if self._expired else Unavailable("the router stopped the request"))
        elif (error := task.exception()) is not None:
            self.outcome = type(error).__name__
            if not isinstance(error, SpecserveError):
                logger.error("%s broke", self.request_id, exc_info=error)
            self.mailbox.end(error)
        else:
            self.outcome = task.result().reason.value
            self.mailbox.end(task.result())

    async def _rounds(self) -> Finished:
        session, draft = self.session, Draft()
        await self._verifier.open()
        while True:
            ahead = max((line.next_tokens for line in self._inside), default=0)
            verdict = await self._verifier.verify(draft, ahead)
            emission = session.apply(verdict, draft)
            round_ = self._account(verdict, draft, emission)
            if emission.reason is None:
                self._ask_drafters()
            chunk = Chunk(emission.tokens, emission.text, round_)
            if emission.reason is not None:
                self.mailbox.put(chunk)
                return Finished(emission.reason, session.usage)
            # The next call goes out one turn of the loop from now; the consumer's work must not come before it.
            self._loop.call_soon(self._loop.call_soon, self.mailbox.put, chunk)
            draft = await self._collect() if self._lines else Draft()

    def _account(self, verdict: Verdict, draft: Draft, emission: Emission) -> Round:
        now, nodes, depth = self._clock(), len(draft), 0
        if nodes:
            depths = draft.depths()
            depth = max(depths)
            reached = depth if emission.reason is None else len(emission.tokens)
            self._stats.draft(draft, depths, verdict.accepted, reached)
        round_ = Round(now - self._last_s, verdict.forward_s, self._draft_s, nodes, depth, verdict.batch)
        if self.first_token_s is None:
            self.first_token_s = round_.wall_s
        prefill = self._verifier.sent > 0  # it says nothing about the cost of a round
        self._stats.round(round_, len(emission.tokens), prefill)
        if not prefill:
            self._policy.verified(verdict, now - self._verifier.sent_s)
        self._last_s, self._draft_s = now, 0.0
        return round_

    # Drafting.

    def _ask_drafters(self) -> None:
        """Learn from the last drafts, and ask for the next as early as can be."""
        self._pending, self._patience = 0, 0.0
        room = min(self.session.room, self._max_depth, self._verifier.reach or self._max_depth)
        ready: list[tuple[str, int]] = []
        for line in self._lines:
            score = line.score()
            if score is not None:
                self._policy.scored(line.name, *score)
            depth = min(line.reach(), room)
            if depth > 0:
                ready.append((line.name, depth))
        if not ready:
            return
        for ask in self._policy.plan(ready):
            line = next(line for line in self._lines if line.name == ask.drafter)
            if ask.patience > 0:
                self._pending += 1
                self._patience = max(self._patience, ask.patience)
            line.ask(ask.depth, ask.patience > 0, ask.price)

    async def _collect(self) -> Draft:
        """The tree of all drafts that come before patience ends."""
        if self._pending:
            began = self._clock()
            self._gate = self._loop.create_future()
            timer = self._loop.call_later(self._patience, self._open_gate)
            try:
                await self._gate
            finally:
                timer.cancel()
                self._gate = None
            self._draft_s = self._clock() - began
        at = len(self.session)
        drafts = [draft for line in self._lines if (draft := line.take(at)) is not None]
        for line in self._lines:
            if line.stop_waiting():
                self._policy.missed(line.name)
                self._stats.drafter(line.name).late += 1
        return join(drafts, self._settings.max_nodes)

    def _draft_settled(self) -> None:
        self._pending -= 1
        if self._pending == 0:
            self._open_gate()

    def _open_gate(self) -> None:
        if self._gate is not None and not self._gate.done():
            self._gate.set_result(None)

    def _drafter_died(self, drafter: str) -> None:
        self._stats.drafter(drafter).died += 1


def join(drafts: Sequence[Draft], nodes: int) -> Draft:
    """One tree of at most `nodes`. Drafts that carry laws cannot be mixed: the first goes alone."""
    if not drafts:
        return Draft()
    if len(drafts) == 1 or any(draft.laws is not None or draft.chains for draft in drafts):
        return drafts[0]
    tree = merge(list(drafts))
    # Parents come before children: the first nodes of a tree are a tree.
    return Draft(tree.tokens[:nodes], tree.parents[:nodes], tree.drafters[:nodes])
