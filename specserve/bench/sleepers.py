"""Workers that sleep instead of computing: they load the control plane, and no model. For the bench alone.

What they emit is a function of the position, and drafts are right but for every fourth position, so acceptance is 3/4.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection

from specserve.serving.backend import Backend
from specserve.serving.worker import WorkerLoop
from specserve.transport.dataplane import DataPlaneServer, GrpcChannel
from specserve.types import Close, Command, Draft, Failed, Grant, Proposal, Propose, Reply, SessionLost, Verdict, Verify

_SECRET = "of the bench"
_VOCAB = 4096


def token(position: int) -> int:
    """What every session says there: ordinary ids, none a special one."""
    return 300 + 7 * position % (_VOCAB - 300)


class _Sleeper:
    """Holds how long each session is, and answers all that wait after one sleep of `step_s` seconds."""

    def __init__(self, step_s: float) -> None:
        self._step_s, self._busy_s = step_s, 0.0
        self._held: dict[int, int] = {}
        self._queue: dict[int, Verify | Propose] = {}

    def submit(self, command: Command) -> Sequence[Reply]:
        session = command.session
        if isinstance(command, Close):
            self._held.pop(session, None)
            self._queue.pop(session, None)
            return ()
        if not isinstance(command, (Verify, Propose)):
            return (Failed(session, "EngineError", "a sleeper verifies and drafts only"),)
        held = 0 if command.base_len == 0 else self._held.get(session, 0)
        if held != command.base_len:
            return (SessionLost(session, held),)
        self._held[session] = held + len(command.tokens)
        self._queue[session] = command
        return ()

    @property
    def busy(self) -> bool:
        return bool(self._queue)

    def step(self) -> Sequence[Reply]:
        batch, self._queue = self._queue, {}
        time.sleep(self._step_s)
        self._busy_s += self._step_s
        return [self._answer(command, len(batch)) for command in batch.values()]

    def stats(self) -> dict[str, float]:
        return {"sessions": float(len(self._held)), "busy_s": self._busy_s}

    def _answer(self, command: Verify | Propose, batch: int) -> Reply:
        raise NotImplementedError


class SleepingVerifier(_Sleeper):
    """Accepts the chain of drafted tokens that it would have said itself."""

    def _answer(self, command: Verify | Propose, batch: int) -> Verdict:
        assert isinstance(command, Verify)
        at, draft = self._held[command.session], command.draft.tokens
        accepted = 0
        while accepted < len(draft) and draft[accepted] == token(at + accepted):
            accepted += 1
        self._held[command.session] = at + accepted + 1
        return Verdict(
            command.session,
            at,
            tuple(range(accepted)),
            token(at + accepted),
            forward_s=self._step_s,
            batch=batch,
            positions=batch * (len(draft) + 1),
        )


class SleepingDrafter(_Sleeper):
    """Drafts a chain with a wrong token at every fourth position."""

    def _answer(self, command: Verify | Propose, batch: int) -> Proposal:
        assert isinstance(command, Propose)
        at = self._held[command.session]
        tokens = tuple(token(i) + (i % 4 == 3) for i in range(at, at + command.max_tokens))
        return Proposal(command.session, at, Draft.chain(tokens), self._step_s)


class SleeperPort:
    """Leases on sleeping replicas, the least used first; channels are the real data plane."""

    def __init__(self, grants: Mapping[str, Sequence[Grant]]) -> None:
        self._grants, self._leases = grants, Counter[Grant]()

    async def lease(self, pool: str) -> SleeperLease:
        grant = min(self._grants[pool], key=lambda grant: self._leases[grant])
        self._leases[grant] += 1
        return SleeperLease(grant, self._leases)

    async def connect(self, grant: Grant) -> GrpcChannel:
        return await GrpcChannel.connect(grant, router="bench", secret=_SECRET)


class SleeperLease:
    """Counts itself; sleepers do not die."""

    def __init__(self, grant: Grant, leases: Counter[Grant]) -> None:
        self.grant, self._leases, self._open = grant, leases, True

    async def died(self) -> None:
        await asyncio.get_running_loop().create_future()

    async def close(self) -> None:
        self._leases[self.grant] -= self._open
        self._open = False


@contextmanager
def sleepers(replicas: Mapping[str, int], step_s: Mapping[str, float]) -> Iterator[dict[str, list[Grant]]]:
    """Replicas in a process of their own, so that the router has its interpreter to itself. Yields their grants.

    Args:
        replicas: of each pool; "verifier" verifies, every other one drafts.
        step_s: what a forward pass of each pool sleeps, seconds.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_host, args=(theirs, dict(replicas), dict(step_s)), daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        ours.send(None)
        process.join(timeout=10)
        if process.is_alive():
            process.kill()


def _host(pipe: Connection, replicas: dict[str, int], step_s: dict[str, float]) -> None:
    asyncio.run(_serve(pipe, replicas, step_s))


async def _serve(pipe: Connection, replicas: dict[str, int], step_s: dict[str, float]) -> None:
    incarnations = itertools.count(1)
    grants: dict[str, list[Grant]] = {}
    running: list[tuple[DataPlaneServer, WorkerLoop]] = []
    for pool, count in replicas.items():
        for i in range(count):
            kind = SleepingVerifier if pool == "verifier" else SleepingDrafter
            backend: Backend = kind(step_s[pool])
            loop = WorkerLoop(backend, name=f"{pool}-{i}")
            loop.start()
            incarnation = next(incarnations)
            server = DataPlaneServer(loop, secret=_SECRET, incarnation=incarnation)
            endpoint = await server.start("127.0.0.1")
            grants.setdefault(pool, []).append(Grant(pool, f"{pool}-{i}", endpoint, incarnation))
            running.append((server, loop))
    pipe.send(grants)
    await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
    for server, loop in running:
        await server.stop()
        await loop.close()
