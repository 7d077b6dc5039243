"""The router's side of the replicas: one channel to each, shared by all sessions that hold a lease there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from specserve.errors import WorkerDied
from specserve.serving.port import Channel, Lease, Port
from specserve.types import Close, Command, Failed, Fill, Grant, Propose, Reply, Verify

logger = logging.getLogger(__name__)

Then = Callable[[Reply], None]

_LINGER_S = 30.0  # a channel without sessions stays open for so long: connecting takes 9 ms of a first token


class Peer:
    """One replica. What waits when the channel is free goes out as one message: no artificial delay.

    A session has at most one call under way here, so a reply finds its caller by the session alone.
    A broken channel answers every waiting call with Failed("WorkerDied"), and so every later one.
    """

    def __init__(self, port: Port, grant: Grant) -> None:
        self.grant = grant
        self.holds = 0
        self.retire: asyncio.TimerHandle | None = None  # while nobody holds it
        self.broken: str | None = None
        self._port = port
        self._loop = asyncio.get_running_loop()
        self._out: list[Command] = []
        self._waiting: dict[int, Then] = {}
        self._wake: asyncio.Future[None] | None = None
        self._closing = False

    def ask(self, command: Verify | Propose | Fill, then: Then) -> None:
        """Send, and call `then` with the one reply. Never calls it before returning."""
        session = command.session
        assert session not in self._waiting, "one call at a time"
        if self.broken is not None:
            self._loop.call_soon(then, Failed(session, "WorkerDied", self.broken))
            return
        self._waiting[session] = then
        self._put(command)

    def forget(self, session: int) -> None:
        """Close the session there; a reply still under way is dropped."""
        self._waiting.pop(session, None)
        if self.broken is None:
            self._put(Close(session))

    def drop(self, session: int, why: str) -> None:
        """Fail this session's call, if one is under way."""
        then = self._waiting.pop(session, None)
        if then is not None:
            then(Failed(session, "WorkerDied", why))

    def fail(self, why: str) -> None:
        """The channel is broken: fail every call."""
        if self.broken is None:
            self.broken = why
            for session in list(self._waiting):
                self.drop(session, why)
            self.close()

    def close(self) -> None:
        """End the channel when what waits has been sent."""
        self._closing = True
        self._rouse()

    def _put(self, command: Command) -> None:
        self._out.append(command)
        self._rouse()

    def _rouse(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def run(self) -> None:
        """Connect, send and receive until closed or broken."""
        try:
            channel = await self._port.connect(self.grant)
        except Exception as error:
            self.fail(_why(self.grant, error))
            return
        reader = self._loop.create_task(self._receive(channel), name=f"replies of {self.grant.replica}")
        try:
            while self.broken is None and (self._out or not self._closing):
                if self._out:
                    batch, self._out = self._out, []
                    await channel.send(batch)
                else:
                    self._wake = self._loop.create_future()
                    await self._wake
        except Exception as error:
            self.fail(_why(self.grant, error))
        finally:
            reader.cancel()
            await channel.close()

    async def _receive(self, channel: Channel) -> None:
        try:
            while True:
                for reply in await channel.receive():
                    then = self._waiting.pop(reply.session, None)
                    if then is not None:
                        then(reply)
        except Exception as error:
            self.fail(_why(self.grant, error))


class Hold:
    """A session's lease together with its place on the replica's channel."""

    def __init__(self, session: int, lease: Lease, peer: Peer, hub: Hub) -> None:
        self.grant = lease.grant
        self._session, self._lease, self._peer, self._hub = session, lease, peer, hub
        self._watch = hub.spawn(self._mourn())
        self._dead = self._released = False

    def ask(self, command: Verify | Propose | Fill, then: Then) -> None:
        """See Peer.ask. A dead lease is as good as a broken channel."""
        if self._dead:
            asyncio.get_running_loop().call_soon(then, Failed(self._session, "WorkerDied", self._obituary()))
        else:
            self._peer.ask(command, then)

    def release(self) -> None:
        """Close the session on the replica and give the lease back, beside whatever goes on. Idempotent."""
        if not self._released:
            self._released = True
            self._watch.cancel()
            self._peer.forget(self._session)
            self._hub.let_go(self._peer)
            self._hub.spawn(self._lease.close())

    async def _mourn(self) -> None:
        await self._lease.died()
        self._dead = True
        self._peer.drop(self._session, self._obituary())

    def _obituary(self) -> str:
        return f"{self.grant.replica} died"


class Hub:
    """All peers of one router, and every task that works for them: `close` waits until nothing is left."""

    def __init__(self, port: Port, linger_s: float = _LINGER_S) -> None:
        self._port, self._linger_s = port, linger_s
        self._peers: dict[tuple[str, int], Peer] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self, pool: str, session: int) -> Hold:
        """Lease a replica of `pool`. Calls may follow at once: they wait for the channel by themselves.

        Raises:
            Unavailable, Overloaded: as Port.lease does. The caller bounds the wait.
        """
        lease = await self._port.lease(pool)
        key = (lease.grant.endpoint, lease.grant.incarnation)
        peer = self._peers.get(key)
        if peer is None or peer.broken is not None:
            peer = self._peers[key] = Peer(self._port, lease.grant)
            self.spawn(peer.run())
        peer.holds += 1
        if peer.retire is not None:
            peer.retire.cancel()
            peer.retire = None
        return Hold(session, lease, peer, self)

    def let_go(self, peer: Peer) -> None:
        """One hold less; the channel ends a while after the last, or with its replica."""
        peer.holds -= 1
        if peer.holds == 0:
            linger_s = 0.0 if peer.broken is not None else self._linger_s
            peer.retire = asyncio.get_running_loop().call_later(linger_s, self._retire, peer)

    def _retire(self, peer: Peer) -> None:
        key = (peer.grant.endpoint, peer.grant.incarnation)
        if self._peers.get(key) is peer:
            del self._peers[key]
        peer.close()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run beside; `close` will wait for it."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    async def close(self) -> None:
        """Wait until every lease and channel has ended. For the time after the last session."""
        for peer in list(self._peers.values()):
            if peer.retire is not None:
                peer.retire.cancel()
                self._retire(peer)
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a task of the hub failed", exc_info=error)


def _why(grant: Grant, error: Exception) -> str:
    if not isinstance(error, WorkerDied):
        logger.exception("%s: the channel broke", grant.replica, exc_info=error)
    return str(error) or repr(error)
