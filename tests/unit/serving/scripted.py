"""A port without a network: backends that take virtual time, replicas that can be killed."""

import asyncio
import itertools
from collections.abc import Callable, Sequence

from toys import _Toy

from specserve.errors import Unavailable, WorkerDied
from specserve.types import Close, Command, Grant, Reply

_incarnations = itertools.count(1)


class Replica:
    """One worker: everything that has arrived is submitted, then stepped for `step_s`."""

    def __init__(self, pool: str, backend: _Toy, step_s: float, trip_s: float) -> None:
        self.grant = Grant(pool, f"{pool}#{next(_incarnations)}", pool, next(_incarnations))
        self.backend, self.step_s, self.trip_s = backend, step_s, trip_s
        self.alive, self.extra_s = True, 0.0
        self.leases: set[Lease] = set()
        self.channels: set[Channel] = set()
        self.owners: dict[int, Channel] = {}
        self.messages = 0
        self._working = False
        backend.on_fault = self._fault

    def kill(self) -> None:
        self.alive = False
        for lease in self.leases:
            lease.gone.set()
        for channel in self.channels:
            channel.inbox.put_nowait(None)

    def take(self, commands: Sequence[Command], channel: "Channel") -> None:
        if not self.alive:
            return
        self.messages += 1
        for command in commands:
            self.owners[command.session] = channel
            self._hand_back(self.backend.submit(command))
            if isinstance(command, Close):
                self.owners.pop(command.session)
        self._work()

    def detach(self, channel: "Channel") -> None:
        for session in [s for s, owner in self.owners.items() if owner is channel]:
            self.take([Close(session)], channel)

    def _fault(self, fault: str) -> None:
        if fault == "die":
            self.kill()
        elif fault in ("late", "tardy"):
            self.extra_s = 5.0 if fault == "late" else 0.1

    def _work(self) -> None:
        if self.alive and self.backend.busy and not self._working:
            self._working = True
            delay, self.extra_s = self.step_s + self.extra_s, 0.0
            asyncio.get_running_loop().call_later(delay, self._stepped)

    def _stepped(self) -> None:
        self._working = False
        if self.alive:
            self._hand_back(self.backend.step())
            self._work()

    def _hand_back(self, replies: Sequence[Reply]) -> None:
        for reply in replies:
            channel = self.owners.get(reply.session)
            if channel is not None:
                asyncio.get_running_loop().call_later(self.trip_s, channel.inbox.put_nowait, [reply])


class Lease:
    def __init__(self, replica: Replica) -> None:
        self.grant, self.replica, self.gone = replica.grant, replica, asyncio.Event()
        replica.leases.add(self)

    async def died(self) -> None:
        await self.gone.wait()

    async def close(self) -> None:
        await asyncio.sleep(0.003)
        self.replica.leases.discard(self)


class Channel:
    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.inbox: asyncio.Queue[Sequence[Reply] | None] = asyncio.Queue()
        replica.channels.add(self)

    async def send(self, commands: Sequence[Command]) -> None:
        if not self.replica.alive:
            raise WorkerDied("the stream is broken")
        asyncio.get_running_loop().call_later(self.replica.trip_s, self.replica.take, commands, self)

    async def receive(self) -> Sequence[Reply]:
        message = await self.inbox.get()
        if message is None:
            raise WorkerDied("the stream has ended")
        return message

    async def close(self) -> None:
        self.replica.channels.discard(self)
        # What was sent before arrives before.
        asyncio.get_running_loop().call_later(self.replica.trip_s, self.replica.detach, self)


class Pool:
    """Replicas of one kind. A dead one is replaced while `spares` last; without any the lease waits for ever."""

    def __init__(self, name: str, build: Callable[[], _Toy], *, replicas: int = 1, spares: int = 99, **times) -> None:
        self.name, self.build, self.spares = name, build, spares
        self.times = {"step_s": 0.01, "trip_s": 0.0005, **times}
        self.replicas = [Replica(name, build(), **self.times) for _ in range(replicas)]
        self.refuse = False

    def pick(self) -> Replica | None:
        alive = [r for r in self.replicas if r.alive]
        if not alive and self.spares:
            self.spares -= 1
            self.replicas.append(Replica(self.name, self.build(), **self.times))
            alive = self.replicas[-1:]
        return min(alive, key=lambda r: len(r.leases), default=None)


class ScriptedPort:
    def __init__(self, *pools: Pool) -> None:
        self.pools = {pool.name: pool for pool in pools}
        self.log: list[str] = []

    async def lease(self, pool: str) -> Lease:
        await asyncio.sleep(0.003)
        if self.pools[pool].refuse:
            raise Unavailable(f"pool {pool!r} refuses")
        replica = self.pools[pool].pick()
        while replica is None:
            await asyncio.sleep(3600)
        self.log.append(f"lease {pool}")
        return Lease(replica)

    async def connect(self, grant: Grant) -> Channel:
        await asyncio.sleep(0.001)
        for replica in self.pools[grant.pool].replicas:
            if replica.grant.incarnation == grant.incarnation and replica.alive:
                return Channel(replica)
        raise WorkerDied("cannot be reached")

    def replicas(self) -> list[Replica]:
        return [replica for pool in self.pools.values() for replica in pool.replicas]

    def assert_nothing_left(self, channels: int = 0) -> None:
        """channels: that may linger at each replica."""
        for replica in self.replicas():
            assert not replica.leases, f"leases left at {replica.grant.replica}"
            assert len(replica.channels) <= channels, f"channels left at {replica.grant.replica}"
            if replica.alive:
                assert not replica.backend.sessions, f"sessions left at {replica.grant.replica}"
