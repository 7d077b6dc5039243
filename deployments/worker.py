"""What Verifier and Drafter replicas share: a backend, its loop, its data-plane endpoint, and leases."""

import asyncio
import contextlib
import gc
import logging
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import ray
from ray import serve

from deployments.metrics import Exporter, every_second
from specserve.config import AppConfig, TlsConfig
from specserve.serving.backend import Backend
from specserve.serving.load import Meter
from specserve.serving.metrics import COPIES, WORKER, copies_samples, worker_samples
from specserve.serving.worker import WorkerLoop
from specserve.transport.dataplane import DataPlaneServer, TlsFiles
from specserve.types import Grant

logger = logging.getLogger("ray.serve")  # the replica's own

_ROUTER_CHECK_S = 5.0
# Of replicas that serve: where cores are scarce, one that starts comes before them, for it starts because they cannot
# keep up. A spike on 2 cores had its new verifier after 11–14 s; at one niceness for all after 26 s.
_NICENESS = 10


def tls_files(config: TlsConfig | None) -> TlsFiles | None:
    return None if config is None else TlsFiles(config.certificate, config.key, config.authority)


class Worker:
    """Base of the worker deployments. A subclass says how its backend is built."""

    async def _start(
        self, pool: str, config: AppConfig, secret: str, build: Callable[[], Backend], torch_threads: int | None = None
    ) -> None:
        """Build the backend off the event loop, then open the endpoint.

        Args:
            torch_threads: for backends that use torch; None for those that never load it.
        """

        def prepare() -> None:  # torch's thread count belongs to the calling thread
            if torch_threads is not None:
                import torch

                torch.set_num_threads(torch_threads)

        def prepared() -> Backend:
            if torch_threads is not None:
                _limit_threads(torch_threads)
            prepare()
            return build()

        # The thread that builds must end: OpenMP keeps a team for every thread that ever used it, and with more
        # teams than cores it stops spinning for work. A 138M bf16 forward here went from 24.6 to 21.1 ms by this.
        with ThreadPoolExecutor(1) as builder, _no_garbage():
            backend = await asyncio.get_running_loop().run_in_executor(builder, prepared)
        step_back()
        self._loop = WorkerLoop(backend, name=pool, prepare=prepare)
        self._loop.start()
        incarnation = secrets.randbits(63)
        self._server = DataPlaneServer(
            self._loop, secret=secret, incarnation=incarnation, tls=tls_files(config.data_plane.tls)
        )
        endpoint = await self._server.start(ray.util.get_node_ip_address())
        self._grant = Grant(
            pool=pool,
            replica=serve.get_replica_context().replica_id.unique_id,
            endpoint=endpoint,
            incarnation=incarnation,
        )
        logger.info("%s ready after %.1f s of CPU", pool, time.process_time())
        self._meter, self._exporter = Meter(time.monotonic()), Exporter((*WORKER, *COPIES))
        self._pushing = asyncio.ensure_future(every_second(self._push))

    async def _push(self) -> None:
        gauges = {**await self._loop.stats(), **asdict(self._loop.service)}
        load = self._meter.read(gauges, time.monotonic())
        self._exporter.push(worker_samples(self._grant.pool, gauges, load))
        self._exporter.push(copies_samples(self._grant.pool, gauges))

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What deployments.autoscaling.Policy scales this pool by."""
        return asdict(self._meter.load)

    async def lease(self, router: str) -> AsyncIterator[Grant]:
        """One grant, then open until the caller cancels: an open lease is one ongoing request to Serve.

        Ray does not end a call whose caller was killed, so a lease also ends by itself when its router
        has had no data-plane stream here for a while.
        """
        yield self._grant
        absent = 0
        while absent < 2:
            await asyncio.sleep(_ROUTER_CHECK_S)
            absent = 0 if self._server.joined(router) else absent + 1

    async def where(self) -> dict[str, object]:
        """Which process this is, and what it does: for operators and fault-injection tests."""
        return {"pid": os.getpid(), "endpoint": self._grant.endpoint, **await self._loop.stats()}

    async def forget_sessions(self) -> None:
        """Drop every session, as a restart would: routers are told and send theirs again."""
        self._loop.forget()

    def check_health(self) -> None:
        if not self._loop.healthy:
            raise RuntimeError(f"the backend broke: {self._loop.failure!r}")

    async def __del__(self) -> None:
        self._pushing.cancel()
        await self._server.stop()
        await self._loop.close()


@contextlib.contextmanager
def _no_garbage() -> Iterator[None]:
    """What is made here stays. Looking for garbage in it takes a quarter of the time to import torch and transformers,
    and later, in every full collection, a pause of their 400,000 objects."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def step_back() -> None:
    """Every thread of this replica, which is ready to serve, goes to the niceness that all such replicas have.

    One replica behind another would cost every round: with routers at 0 a round took 0.25 ms more than at 10.
    """
    threads = os.listdir("/proc/self/task") if os.path.isdir("/proc/self/task") else ["0"]
    for thread in map(int, threads):
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.setpriority(os.PRIO_PROCESS, thread, max(_NICENESS, os.getpriority(os.PRIO_PROCESS, thread)))


def _limit_threads(threads: int) -> None:
    """Before torch is loaded: OpenMP reads these once.

    Threads spin about 0.2 ms for their next piece of work and then sleep. A 138M bf16 forward on 2 cores, beside other
    load: about 16 ms so, 19.9 ms when they sleep at once, over a second when they spin for as long as OpenMP likes.
    """
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
