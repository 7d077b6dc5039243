"""A Backend in a thread of its own: the event loop never blocks, the backend never waits for a lock."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from specserve.errors import SpecserveError, WorkerDied
from specserve.serving.backend import Backend
from specserve.serving.rejoin import Rejoin
from specserve.types import Close, Command, Failed, Reply, SessionLost

logger = logging.getLogger(__name__)

_GLANCE_S = 0.05

Destination = Callable[[list[Reply]], None]


@dataclass(slots=True)
class Service:
    """Totals of the calls answered. `wait_s` is what they waited before the step that answered them, `latency_s` all
    from arrival to reply, in seconds."""

    calls: int = 0
    wait_s: float = 0.0
    latency_s: float = 0.0


class WorkerLoop:
    """Runs a backend on everything that has arrived, one bounded step after the other.

    `submit` and `detach` are for the event loop that called `start`; replies are handed back on it, joined into
    one list per destination and step. A session belongs to the destination that spoke of it last.
    """

    def __init__(self, backend: Backend, name: str = "worker", prepare: Callable[[], None] = lambda: None) -> None:
        """prepare: called first in the thread, for what a library keeps per thread."""
        self._backend, self._prepare = backend, prepare
        self._name = name
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = False
        self._failure: Exception | None = None
        self.service = Service()  # written by the thread, read by anyone
        # The thread's own:
        self._owners: dict[int, Destination] = {}
        self._waiting: dict[int, float] = {}  # sessions that are owed a reply, oldest first: when they asked
        self._replies: list[Reply] = []
        self._rejoin = Rejoin()

    def start(self) -> None:
        """Start the thread. Call it on the event loop that is to get the replies."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    @property
    def healthy(self) -> bool:
        """Whether the backend can still be used. Once False it stays so: the replica must be replaced."""
        return self._failure is None and self._thread.is_alive()

    @property
    def failure(self) -> Exception | None:
        """What broke the backend."""
        return self._failure

    def submit(self, commands: Sequence[Command], reply_to: Destination) -> None:
        """Hand commands to the backend. Every Verify and Propose gets exactly one reply."""
        came_s = time.perf_counter()
        self._inbox.put(lambda: self._take(commands, reply_to, came_s))

    def detach(self, reply_to: Destination) -> None:
        """The destination is gone: close every session that is still its own."""
        self._inbox.put(lambda: self._leave(reply_to))

    def forget(self) -> None:
        """Drop every session, as a restart would: who waits is told at once, the others when they come."""
        self._inbox.put(self._drop)

    async def stats(self) -> dict[str, float]:
        """The backend's gauges, read between two steps. Empty when the backend is broken or stopped."""
        assert self._loop is not None, "start() first"
        loop, answer = self._loop, self._loop.create_future()

        def settle(gauges: dict[str, float]) -> None:
            if not answer.done():
                answer.set_result(gauges)

        def read() -> None:
            gauges: dict[str, float] = {}
            try:
                if self._failure is None:
                    gauges = self._backend.stats()
            finally:
                loop.call_soon_threadsafe(settle, gauges)

        if not self.healthy:
            return {}
        self._inbox.put(read)
        return dict(await answer)

    async def close(self) -> None:
        """Stop after the step under way and join the thread. Idempotent."""
        if self._thread.ident is None:
            return
        self._inbox.put(self._stop)
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join)

    # The thread.

    def _run(self) -> None:
        self._prepare()
        while not self._stopping:
            try:
                self._turn()
            except Exception as error:
                logger.exception("%s broke", self._name)
                self._fail(error)
        self._fail(WorkerDied("stopped"))
        while not self._inbox.empty():  # what came too late is answered too
            self._inbox.get()()
        self._hand_back()

    def _turn(self) -> None:
        pause = self._pause()
        if pause != 0:
            self._idle(pause)
        while not self._inbox.empty():
            self._inbox.get()()
        self._hand_back()  # what needed no computing does not wait for the step
        if not self._stopping and self._pause() == 0:
            began = time.perf_counter()
            self._replies += self._backend.step()
            seconds = time.perf_counter() - began
            self._rejoin.stepped(seconds)
            self._hand_back(seconds)

    def _pause(self) -> float | None:
        """Seconds to wait before the next step, unless something comes; None while there is nothing to do. A backend
        that owes replies but is not busy waits for room or for the clock: it is asked again."""
        if self._busy():
            return self._rejoin.wait(time.perf_counter())
        return _GLANCE_S if self._waiting and self._failure is None else None

    def _idle(self, seconds: float | None) -> None:
        try:
            call = self._inbox.get(timeout=seconds)
        except Empty:
            return
        call()

    def _busy(self) -> bool:
        return self._failure is None and self._backend.busy

    def _stop(self) -> None:
        self._stopping = True

    def _take(self, commands: Sequence[Command], reply_to: Destination, came_s: float) -> None:
        for command in commands:
            session = command.session
            if isinstance(command, Close):
                self._owners.pop(session, None)
                self._waiting.pop(session, None)
                self._rejoin.gone(session)
            else:
                self._rejoin.back(session, came_s)
                self._owners[session] = reply_to
                self._waiting[session] = came_s
        for command in commands:
            self._submit(command)

    def _submit(self, command: Command) -> None:
        if self._failure is not None:
            if not isinstance(command, Close):
                self._replies.append(self._obituary(command.session))
            return
        try:
            self._replies += self._backend.submit(command)
        except SpecserveError as error:  # this session's trouble alone
            self._replies.append(Failed(command.session, type(error).__name__, str(error)))

    def _leave(self, reply_to: Destination) -> None:
        gone = [session for session, owner in self._owners.items() if owner == reply_to]
        self._take([Close(session) for session in gone], reply_to, 0.0)

    def _drop(self) -> None:
        for session in self._owners:
            self._submit(Close(session))
        self._replies += [SessionLost(session, 0) for session in self._waiting]

    def _fail(self, error: Exception) -> None:
        """Nobody waits for an answer that cannot come."""
        self._failure = self._failure or error
        self._replies += [self._obituary(session) for session in self._waiting]
        self._hand_back()

    def _obituary(self, session: int) -> Failed:
        return Failed(session, "WorkerDied", f"{self._name}: {self._failure!r}")

    def _hand_back(self, step_s: float = 0.0) -> None:
        """Send the replies that a step of `step_s` has finished."""
        if not self._replies:
            return
        batches: dict[Destination, list[Reply]] = {}
        now = time.perf_counter()
        asked = 0.0
        for reply in self._replies:
            asked += self._waiting.pop(reply.session, now)
            self._rejoin.answered(reply.session, now)
            owner = self._owners.get(reply.session)
            if owner is not None:
                batches.setdefault(owner, []).append(reply)
        calls, self._replies = len(self._replies), []
        service, latency_s = self.service, max(0.0, calls * now - asked)
        service.calls += calls
        service.latency_s += latency_s
        service.wait_s += max(0.0, latency_s - calls * step_s)
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the event loop is closed: nobody is left to tell
            self._loop.call_soon_threadsafe(_deliver, batches.items())


def _deliver(batches: Iterable[tuple[Destination, list[Reply]]]) -> None:
    for reply_to, replies in batches:
        try:
            reply_to(replies)
        except Exception:
            logger.exception("a destination refused %d replies", len(replies))
