"""A session's line to one drafter pool. It can be late, lost or dead; the session never waits for it to open."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from specserve.errors import SpecserveError
from specserve.serving.hub import Hold, Hub
from specserve.serving.session import Session
from specserve.serving.settings import DrafterPool, Settings
from specserve.types import Draft, DraftContext, Failed, Proposal, Propose, Reply, SessionLost, SessionSpec

logger = logging.getLogger(__name__)

_HUNG_S = 10.0  # a drafter that has not answered by then is given up


class DraftLine:
    """At most one call is under way; a proposal for a position that has moved on is only good for its score.

    Args:
        context: for a pool that copies.
        settled: called when the proposal that was asked for has come, or cannot come any more.
        drafted: called with (drafter, depth asked, nodes, seconds, whether it was late) for every proposal.
        measured: called with (drafter, what its replica has measured of itself) now and then.
        died: called when the lease was lost.
    """

    def __init__(
        self,
        pool: DrafterPool,
        hub: Hub,
        settings: Settings,
        id: int,
        session: Session,
        spec: SessionSpec,
        *,
        request_id: str,
        vocab_size: int,
        context: DraftContext | None = None,
        settled: Callable[[], None],
        drafted: Callable[[str, int, int, float, bool], None],
        measured: Callable[[str, Mapping[str, float]], None],
        died: Callable[[str], None],
    ) -> None:
        self.name = pool.name
        self._pool, self._hub, self._settings = pool, hub, settings
        self._id, self._session, self._spec = id, session, spec
        self._request_id, self._vocab_size = request_id, vocab_size
        self._settled, self._drafted, self._measured, self._died = settled, drafted, measured, died
        self._context = context if pool.copies else None
        self._loop = asyncio.get_running_loop()
        self._clock = settings.clock
        self._hold: Hold | None = None
        self._backoff = settings.backoff_s
        self._held = 0  # committed tokens the drafter has been sent
        self._busy = False
        self._asked_at, self._asked_s, self._depth, self._price, self._resent = 0, 0.0, 0, 0.0, False
        self._awaited = self._wanted = False  # a reply is awaited; it is for this round's verification
        self._proposal: tuple[int, Draft] | None = None  # the latest, and the length it speaks about
        self._opening = self._loop.create_task(self._open(0.0), name=f"open {pool.pool}")

    def reach(self) -> int:
        """Deepest draft it can be asked for now; 0 while it cannot be asked."""
        if self._hold is None:
            return 0
        if self._busy:
            if self._clock() - self._asked_s > _HUNG_S:
                self._lose(f"no answer within {_HUNG_S:g} s")
            return 0
        return min(self._pool.max_tokens, self._hold.grant.max_draft_tokens or self._pool.max_tokens)

    def ask(self, depth: int, awaited: bool, price: float = 0.0) -> None:
        """Send what is new, and ask for a draft. Only while `reach` is above 0. `settled` follows if awaited."""
        self._depth, self._price, self._awaited, self._wanted, self._resent = depth, price, awaited, awaited, False
        self._send()

    def stop_waiting(self) -> bool:
        """The round goes on. Whether it goes on without a proposal that was awaited."""
        late, self._awaited = self._awaited, False
        return late

    def take(self, at: int) -> Draft | None:
        """The proposal that was awaited for the committed length `at`, if it has come with anything."""
        if self._proposal is None or not self._wanted or self._proposal[0] != at:
            return None
        return self._proposal[1] if self._proposal[1].tokens else None

    def score(self) -> tuple[int, bool] | None:
        """How far the latest proposal was right and whether it went wrong then; None while the text is too
        short to tell. A proposal is scored once."""
        if self._proposal is None:
            return None
        at, draft = self._proposal
        verdict = follow(draft, self._session.tokens, at)
        if verdict is not None:
            self._proposal = None
        return verdict

    def close(self) -> None:
        """Give everything back."""
        self._opening.cancel()
        if self._hold is not None:
            self._hold.release()

    def _send(self) -> None:
        assert self._hold is not None
        assert not self._busy
        tokens, held = self._session.tokens, self._held
        self._busy = True
        self._asked_at, self._asked_s = len(tokens), self._clock()
        self._held = len(tokens)
        spec, context = (self._spec, self._context) if held == 0 else (None, None)
        nodes = self._settings.max_nodes if self._pool.copies else 0
        verdict = self._session.last if self._pool.features else None
        features = verdict.features if verdict is not None else None
        self._hold.ask(
            Propose(self._id, held, tuple(tokens[held:]), self._depth, spec, nodes, self._price, context, features),
            self._answer,
        )

    def _answer(self, reply: Reply) -> None:
        self._busy = False
        if isinstance(reply, Proposal):
            self._propose(reply)
        elif isinstance(reply, SessionLost):
            self._held = 0
            if self._resent:
                self._lose("lost the session twice in a row")
            else:
                self._resent = True
                self._send()
        else:
            self._lose(f"{reply.kind}: {reply.message}" if isinstance(reply, Failed) else f"answered {reply!r}")

    def _propose(self, reply: Proposal) -> None:
        if reply.measured:
            self._measured(self.name, reply.measured)
        depth, self._depth = self._depth, 0
        if depth:
            self._backoff = self._settings.backoff_s
            draft = sound(reply.draft, self.name, depth, self._settings.max_nodes, self._vocab_size)
            if reply.at == self._asked_at:  # else it speaks about tokens that nobody has sent
                self._proposal = (reply.at, draft)
            late = self._wanted and not self._awaited
            self._drafted(self.name, depth, len(draft), self._clock() - self._asked_s, late)
        self._settle()

    def _settle(self) -> None:
        if self._awaited:
            self._awaited = False
            self._settled()

    def _lose(self, why: str) -> None:
        """Drop the lease, and open another one beside the running rounds."""
        logger.info("%s drafter %s lost: %s", self._request_id, self.name, why)
        assert self._hold is not None
        self._hold.release()
        self._hold, self._busy, self._held = None, False, 0
        self._died(self.name)
        self._opening = self._hub.spawn(self._open(self._backoff))
        self._settle()

    async def _open(self, delay: float) -> None:
        settings = self._settings
        while self._hold is None:
            if delay:
                self._backoff = min(2 * delay, settings.max_backoff_s)
                await asyncio.sleep(delay)
            try:
                async with asyncio.timeout(settings.lease_timeout_s):
                    self._hold = await self._hub.open(self._pool.pool, self._id)
            except (SpecserveError, TimeoutError) as error:
                delay = self._backoff
                logger.info("%s drafter %s cannot be had: %s", self._request_id, self.name, error)
        self._depth, self._awaited = 0, False
        self._send()  # prefill


def follow(draft: Draft, tokens: list[int], at: int) -> tuple[int, bool] | None:
    """How far `tokens[at:]` runs along the tree, and whether the tree went on another way.

    None: the tokens end before the tree does.
    """
    node, matched, length = -1, 0, len(tokens) - at
    for child, parent in enumerate(draft.parents):
        if parent != node:
            continue
        if matched == length:
            return None
        if draft.tokens[child] == tokens[at + matched]:
            node, matched = child, matched + 1
    return matched, node in draft.parents


def sound(draft: Draft, drafter: str, depth: int, nodes: int, vocab_size: int) -> Draft:
    """The part of a proposal that can be verified, credited to `drafter`: a wrong drafter only costs speed.

    Laws and chains speak about the draft as it was drawn, so a draft that has them is taken whole or not at all.
    """
    tokens, parents, laws, chains = draft.tokens, draft.parents, draft.laws, draft.chains
    n = min(len(tokens), len(parents), nodes)
    if n and not 0 <= min(tokens) <= max(tokens) < vocab_size:
        n = min(n, next(i for i, token in enumerate(tokens) if not 0 <= token < vocab_size))
    if parents[:n] == tuple(range(-1, n - 1)):
        n = min(n, depth)
    else:
        depths: list[int] = []
        for node, parent in enumerate(parents[:n]):
            if not -1 <= parent < node or (depths[parent] if parent >= 0 else 0) == depth:
                n = node
                break
            depths.append(1 if parent < 0 else depths[parent] + 1)
    credit = (drafter,) * n
    if laws is None and not chains:
        return Draft(tokens[:n], parents[:n], credit)
    whole = n == len(tokens) == len(parents) and (laws is None or len(laws) == n)
    if whole and all(0 <= node < n for chain in chains for node in chain):
        return Draft(tokens, parents, credit, laws, chains)
    return Draft()
