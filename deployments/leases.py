"""The Ray + gRPC port: a lease is one streaming Serve call, a channel one gRPC stream."""

import asyncio
from collections.abc import Mapping
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from specserve.errors import Unavailable
from specserve.transport.dataplane import GrpcChannel, TlsFiles, Traffic
from specserve.types import Grant


class ServeLease:
    """Open as long as the call behind it is. Serve counts it, drains for it, and cleans up after a crash."""

    def __init__(self, grant: Grant, call: DeploymentResponseGenerator) -> None:
        self.grant = grant
        self._call = call
        self._end = asyncio.ensure_future(_exhaust(call))

    async def died(self) -> None:
        await asyncio.shield(self._end)

    async def close(self) -> None:
        self._call.cancel()
        # Serve counts the request as ongoing until its generator has been iterated to the end.
        await asyncio.shield(self._end)


async def _exhaust(call: DeploymentResponseGenerator) -> None:
    try:
        async for _ in call:
            pass
    except (RayError, RayServeException, asyncio.CancelledError):
        return  # cancelled by us, or the replica is gone: either way the lease has ended


class ServePort:
    """Leases through Serve handles, by pool name; channels straight to the replicas."""

    def __init__(
        self, pools: Mapping[str, DeploymentHandle], *, router: str, secret: str, tls: TlsFiles | None = None
    ) -> None:
        self._pools: dict[str, Any] = {name: handle.options(stream=True) for name, handle in pools.items()}
        self._router, self._secret, self._tls = router, secret, tls
        self._ending: set[asyncio.Future[None]] = set()
        self.traffic = Traffic()

    async def lease(self, pool: str) -> ServeLease:
        call: DeploymentResponseGenerator = self._pools[pool].lease.remote(self._router)
        try:
            return ServeLease(await anext(aiter(call)), call)
        except (RayError, RayServeException, StopAsyncIteration) as error:
            raise Unavailable(f"no replica of pool {pool!r} gave a lease: {error}") from error
        except asyncio.CancelledError:
            call.cancel()
            self._ending.add(end := asyncio.ensure_future(_exhaust(call)))
            end.add_done_callback(self._ending.discard)
            raise

    async def connect(self, grant: Grant) -> GrpcChannel:
        return await GrpcChannel.connect(
            grant, router=self._router, secret=self._secret, tls=self._tls, traffic=self.traffic
        )
