"""How many requests are served at once, how many may wait, and for how long."""

from __future__ import annotations

import asyncio
from collections import deque

from specserve.errors import Overloaded


class Admission:
    """First come, first served. Every `enter` that returns needs one `leave`."""

    def __init__(self, max_sessions: int, max_waiting: int, timeout_s: float) -> None:
        self._max_sessions, self._max_waiting, self._timeout_s = max_sessions, max_waiting, timeout_s
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._pace_s = 1.0  # between two that leave, a decayed mean
        self._left_s: float | None = None
        self.inside = 0

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def retry_after_s(self) -> float:
        """When half of those that wait will have been let in, at the pace of late."""
        return min(max(self._pace_s * (len(self._waiting) + 1) / 2, 0.1), 60.0)

    async def enter(self) -> None:
        """Wait for room.

        Raises:
            Overloaded: too many wait already, or there was no room in time.
        """
        if self.inside < self._max_sessions:
            self.inside += 1
            return
        if len(self._waiting) >= self._max_waiting:
            raise Overloaded(
                f"at most {self._max_sessions} requests are served and {self._max_waiting} wait; all places are taken",
                self.retry_after_s,
            )
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(self._timeout_s):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self.leave()  # the place came too late
            else:
                self._waiting.remove(turn)
            if isinstance(error, TimeoutError):
                raise Overloaded(
                    f"no room within {self._timeout_s:g} s behind {self._max_sessions} requests", self.retry_after_s
                ) from error
            raise

    def leave(self) -> None:
        """Give the place to the one that has waited longest."""
        now = asyncio.get_running_loop().time()
        if self._left_s is not None:
            self._pace_s += 0.1 * (now - self._left_s - self._pace_s)
        self._left_s = now
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.inside -= 1
