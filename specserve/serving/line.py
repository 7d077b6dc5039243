"""A session's line to the replica that holds its model. When that loses the session or dies, the session goes on at
another: what is committed and the seed make every answer the same."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Generic, TypeVar

from specserve import errors
from specserve.errors import EngineError, InvalidRequest, Overloaded, SpecserveError, Unavailable
from specserve.serving.hub import Hold, Hub
from specserve.serving.settings import Settings
from specserve.serving.stats import Stats
from specserve.types import Failed, Fill, Filled, Reply, SessionLost, Verdict, Verify

logger = logging.getLogger(__name__)

_DEAD = ("WorkerDied", "Unavailable")  # failures that another replica can heal

Answer = TypeVar("Answer", Verdict, Filled)


class Line(Generic[Answer]):
    """One call at a time.

    Args:
        pool: the port's name of the replicas; `what` is what messages call one of them.
        answer: the type of their replies.
    """

    def __init__(
        self,
        hub: Hub,
        settings: Settings,
        id: int,
        pool: str,
        what: str,
        answer: type[Answer],
        *,
        request_id: str,
        stats: Stats,
    ) -> None:
        self._hub, self._settings, self._stats = hub, settings, stats
        self._id, self._pool, self._what, self._request_id = id, pool, what, request_id
        self._answer: type[Answer] = answer
        self._loop = asyncio.get_running_loop()
        self._hold: Hold | None = None
        self._held = 0  # committed tokens the replica holds
        self._begun = False  # whether it has ever answered

    async def open(self) -> None:
        """Lease a replica. Raises Unavailable when none has room in time."""
        timeout_s = self._settings.lease_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                self._hold = await self._hub.open(self._pool, self._id)
        except TimeoutError as error:
            raise Unavailable(f"no {self._what} had room within {timeout_s:g} s") from error
        self._held = 0

    async def call(self, command: Callable[[int], Verify | Fill]) -> Answer:
        """The answer, from this replica or, when it dies, from another.

        Args:
            command: makes the command for a replica that holds so many committed tokens.
        Raises:
            Unavailable: several attempts in a row have failed, or no other replica can be had.
            SpecserveError: what the replica refused with.
        """
        failures = 0
        while True:
            reply = await self._ask(command(self._held))
            if isinstance(reply, self._answer):
                self._begun = True
                return reply
            failures += 1
            if failures >= self._settings.attempts:
                raise Unavailable(f"{failures} attempts at one round failed; the last: {reply}")
            if isinstance(reply, SessionLost):
                logger.info("%s lost by the %s, which holds %d", self._request_id, self._what, reply.held)
                self._stats.lost += 1
                self._held = 0
            elif isinstance(reply, Failed) and self._heals(reply):
                await self._move(reply)
            elif isinstance(reply, Failed):
                raise error_of(reply)
            else:
                raise EngineError(f"a {self._what} must answer with a {self._answer.__name__}; got {reply!r}")

    def close(self) -> None:
        """Give the lease back."""
        if self._hold is not None:
            self._hold.release()

    async def _ask(self, command: Verify | Fill) -> Reply:
        assert self._hold is not None, "open() first"
        answer: asyncio.Future[Reply] = self._loop.create_future()

        def settle(reply: Reply) -> None:
            if not answer.done():
                answer.set_result(reply)

        def hung() -> None:
            settle(Failed(self._id, "WorkerDied", f"no answer within {self._settings.verify_timeout_s:g} s"))

        timer = self._loop.call_later(self._settings.verify_timeout_s, hung)
        self._hold.ask(command, settle)
        try:
            return await answer
        finally:
            timer.cancel()

    def _heals(self, failed: Failed) -> bool:
        """Whether another replica may do better. A full one refuses new requests, not those under way."""
        return failed.kind in _DEAD or (failed.kind == Overloaded.__name__ and self._begun)

    async def _move(self, failed: Failed) -> None:
        """Take the session to another replica."""
        assert self._hold is not None
        logger.warning("%s %s %s lost: %s", self._request_id, self._what, self._hold.grant.replica, failed.message)
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
                    raise Unavailable(f"the {self._what} died and no other can be had: {error}") from error
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
