"""A session's line to the verifier. It can lose the session or die; the session is rebuilt and goes on."""

from __future__ import annotations

import asyncio
import logging

from specserve import errors
from specserve.errors import EngineError, InvalidRequest, Overloaded, SpecserveError, Unavailable
from specserve.serving.hub import Hold, Hub
from specserve.serving.session import Session
from specserve.serving.settings import Settings
from specserve.serving.stats import Stats
from specserve.types import Draft, Failed, Reply, SessionLost, SessionSpec, Verdict, Verify

logger = logging.getLogger(__name__)

_DEAD = ("WorkerDied", "Unavailable")  # failures that another replica can heal


class VerifyLine:
    """One call at a time; whatever replica answers it, the committed tokens and the seed make the verdict the same."""

    def __init__(
        self,
        hub: Hub,
        settings: Settings,
        id: int,
        session: Session,
        spec: SessionSpec,
        *,
        request_id: str,
        stats: Stats,
    ) -> None:
        self._hub, self._settings, self._stats = hub, settings, stats
        self._id, self._session, self._spec, self._request_id = id, session, spec, request_id
        self._loop = asyncio.get_running_loop()
        self._clock = settings.clock
        self._hold: Hold | None = None
        self._held = 0  # committed tokens the verifier holds
        self.sent = 0  # committed tokens that went with the last call; a session under way sends none
        self.sent_s = 0.0  # when that was

    @property
    def reach(self) -> int | None:
        """Deepest draft this replica takes; None where it sets no bound."""
        return self._hold.grant.max_draft_tokens or None if self._hold is not None else None

    async def open(self) -> None:
        """Lease a replica. Raises Unavailable when none has room in time."""
        timeout_s = self._settings.lease_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                self._hold = await self._hub.open(self._settings.verifier_pool, self._id)
        except TimeoutError as error:
            raise Unavailable(f"no verifier had room within {timeout_s:g} s") from error
        self._held = 0

    async def verify(self, draft: Draft) -> Verdict:
        """The verdict on `draft`, from this replica or, when it dies, from another.

        Raises:
            Unavailable: several attempts in a row have failed, or no other replica can be had.
            SpecserveError: what the replica refused with.
        """
        failures = 0
        while True:
            reply = await self._ask(draft)
            if isinstance(reply, Verdict):
                self._held = reply.at + len(reply.accepted) + 1
                return reply
            failures += 1
            if failures >= self._settings.attempts:
                raise Unavailable(f"{failures} attempts at one round failed; the last: {reply}")
            if isinstance(reply, SessionLost):
                logger.info("%s lost by the verifier, which holds %d", self._request_id, reply.held)
                self._stats.lost += 1
                self._held = 0
            elif isinstance(reply, Failed) and self._heals(reply):
                await self._move(reply)
            elif isinstance(reply, Failed):
                raise error_of(reply)
            else:
                raise EngineError(f"a verifier must answer with a verdict; got {reply!r}")

    def close(self) -> None:
        """Give the lease back."""
        if self._hold is not None:
            self._hold.release()

    async def _ask(self, draft: Draft) -> Reply:
        assert self._hold is not None, "open() first"
        answer: asyncio.Future[Reply] = self._loop.create_future()

        def settle(reply: Reply) -> None:
            if not answer.done():
                answer.set_result(reply)

        def hung() -> None:
            settle(Failed(self._id, "WorkerDied", f"no verdict within {self._settings.verify_timeout_s:g} s"))

        tokens, held = self._session.tokens, self._held
        spec = self._spec if held == 0 else None
        self.sent, self.sent_s = len(tokens) - held, self._clock()
        timer = self._loop.call_later(self._settings.verify_timeout_s, hung)
        self._hold.ask(Verify(self._id, held, tuple(tokens[held:]), draft, spec), settle)
        try:
            return await answer
        finally:
            timer.cancel()

    def _heals(self, failed: Failed) -> bool:
        """Whether another replica may do better. A full one refuses new requests, not those under way."""
        return failed.kind in _DEAD or (failed.kind == Overloaded.__name__ and self._session.usage.rounds > 0)

    async def _move(self, failed: Failed) -> None:
        """Take the session to another replica."""
        assert self._hold is not None
        logger.warning("%s verifier %s lost: %s", self._request_id, self._hold.grant.replica, failed.message)
        self._stats.rebuilt += 1
        self._hold.release()
        delay = 0.0
        for attempt in range(1, self._settings.attempts + 1):
            await asyncio.sleep(delay)
            try:
                await self.open()
                return
            except (Unavailable, Overloaded) as error:
                if attempt == self._settings.attempts:
                    raise Unavailable(f"the verifier died and no other can be had: {error}") from error
            delay = min(max(2 * delay, self._settings.backoff_s), self._settings.max_backoff_s)


def error_of(failed: Failed) -> SpecserveError:
    """The error that a worker named."""
    kind = getattr(errors, failed.kind, None)
    if kind is InvalidRequest:
        field, _, bound = failed.message.partition(" ")
        return InvalidRequest(field, bound.partition("; got ")[0], bound.partition("; got ")[2] or None)
    if isinstance(kind, type) and issubclass(kind, SpecserveError):
        return kind(failed.message)
    return EngineError(f"{failed.kind}: {failed.message}")
