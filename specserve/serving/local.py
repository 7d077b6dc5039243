"""Workers in this process: the port for local use, without Ray or gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from specserve.errors import Unavailable, WorkerDied
from specserve.serving.worker import WorkerLoop
from specserve.types import Command, Grant, Reply


class LocalLease:
    """Holds nothing but its grant; a broken backend shows as a WorkerDied reply."""

    def __init__(self, grant: Grant) -> None:
        self.grant = grant

    async def died(self) -> None:
        await asyncio.get_running_loop().create_future()

    async def close(self) -> None:
        return


class LocalChannel:
    """Commands to one WorkerLoop, its replies back."""

    def __init__(self, worker: WorkerLoop) -> None:
        self._worker = worker
        self._replies: asyncio.Queue[list[Reply]] = asyncio.Queue()
        self._reply_to = self._replies.put_nowait

    async def send(self, commands: Sequence[Command]) -> None:
        self._worker.submit(commands, self._reply_to)

    async def receive(self) -> Sequence[Reply]:
        return await self._replies.get()

    async def close(self) -> None:
        self._worker.detach(self._reply_to)


class LocalPort:
    """One started WorkerLoop per pool.

    Args:
        workers: pool name -> the pool's only worker.
        max_draft_tokens: pool name -> deepest draft it makes or takes; 0 where nothing is said.
    """

    def __init__(self, workers: Mapping[str, WorkerLoop], max_draft_tokens: Mapping[str, int] | None = None) -> None:
        self._workers = workers
        self._depths = max_draft_tokens or {}

    async def lease(self, pool: str) -> LocalLease:
        worker = self._workers.get(pool)
        if worker is None or not worker.healthy:
            raise Unavailable(f"pool {pool!r} has no healthy worker")
        return LocalLease(Grant(pool, f"{pool}-0", pool, 0, self._depths.get(pool, 0)))

    async def connect(self, grant: Grant) -> LocalChannel:
        worker = self._workers.get(grant.pool)
        if worker is None or not worker.healthy:
            raise WorkerDied(f"{grant.replica} is broken")
        return LocalChannel(worker)
