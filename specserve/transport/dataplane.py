"""The data plane: one bidirectional gRPC stream joins one router to one worker replica."""

from __future__ import annotations

import asyncio
import hmac
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import grpc
import grpc.aio

from specserve.errors import ConfigError, WorkerDied
from specserve.transport import wire
from specserve.types import Command, Grant, Reply
from specserve.worker.v1 import worker_pb2 as pb
from specserve.worker.v1 import worker_pb2_grpc as pb_grpc

Replies = Callable[[list[Reply]], None]

_OPTIONS = (
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", 64 << 20),
    # A cut network shows within 10 s even on an idle stream; a killed process shows at once.
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
)
_WORK = f"/{pb.DESCRIPTOR.services_by_name['WorkerService'].full_name}/Work"
_SECRET, _INCARNATION, _ROUTER = "specserve-secret", "specserve-incarnation", "specserve-router"


class Loop(Protocol):
    """What the servicer needs of a worker (`serving.worker.WorkerLoop`)."""

    def submit(self, commands: Sequence[Command], reply_to: Replies) -> None: ...

    def detach(self, reply_to: Replies) -> None: ...


class TlsFiles:
    """PEM files of the data plane: a certificate chain, its key, and the authority both sides trust.

    Replicas come and go on any address, so the certificate is for one name that all of them go by.
    """

    NAME = "specserve-worker"

    def __init__(self, certificate: str, key: str, authority: str) -> None:
        try:
            self.certificate = Path(certificate).read_bytes()
            self.key = Path(key).read_bytes()
            self.authority = Path(authority).read_bytes()
        except OSError as error:
            raise ConfigError(f"data_plane.tls: cannot read {error.filename}: {error.strerror}") from error

    def server(self) -> grpc.ServerCredentials:
        return grpc.ssl_server_credentials([(self.key, self.certificate)], self.authority, True)

    def client(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(self.authority, self.key, self.certificate)


class _Servicer(pb_grpc.WorkerServiceServicer):
    def __init__(self, loop: Loop, secret: str, incarnation: int) -> None:
        self._loop, self._secret, self._incarnation = loop, secret, incarnation
        self.routers: Counter[str] = Counter()

    async def Work(
        self,
        request_iterator: AsyncIterator[pb.WorkRequest],
        context: grpc.aio.ServicerContext[pb.WorkRequest, pb.WorkResponse],
    ) -> None:
        metadata = dict(context.invocation_metadata() or ())
        if not hmac.compare_digest(str(metadata.get(_SECRET, "")).encode(), self._secret.encode()):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the data plane needs the app's secret")
        if metadata.get(_INCARNATION) != str(self._incarnation):
            await context.abort(grpc.StatusCode.UNAVAILABLE, "this replica is another incarnation than the grant's")
        out: asyncio.Queue[list[Reply]] = asyncio.Queue()
        reply_to = out.put_nowait  # bound once: its identity is the stream's

        async def pump() -> None:
            while True:
                replies = await out.get()
                while not out.empty():
                    replies += out.get_nowait()
                await context.write(wire.encode_replies(replies))

        writer = asyncio.ensure_future(pump())
        router = str(metadata.get(_ROUTER, ""))
        self.routers[router] += 1
        # The headers tell the router that it was let in.
        await context.send_initial_metadata(())
        try:
            async for request in request_iterator:
                self._loop.submit(wire.decode_commands(request), reply_to)
        finally:
            writer.cancel()
            self._loop.detach(reply_to)
            self.routers[router] -= 1
            self.routers += Counter()  # drops the zeros


class DataPlaneServer:
    """A worker replica's endpoint. `start` binds a free port of `host` and returns the address for grants."""

    def __init__(self, loop: Loop, *, secret: str, incarnation: int, tls: TlsFiles | None = None) -> None:
        self._server = grpc.aio.server(options=_OPTIONS)
        self._servicer = _Servicer(loop, secret, incarnation)
        pb_grpc.add_WorkerServiceServicer_to_server(self._servicer, self._server)
        self._tls = tls

    def joined(self, router: str) -> bool:
        """Whether this router has a stream open now."""
        return self._servicer.routers[router] > 0

    async def start(self, host: str) -> str:
        if self._tls is None:
            port = self._server.add_insecure_port(f"{host}:0")
        else:
            port = self._server.add_secure_port(f"{host}:0", self._tls.server())
        await self._server.start()
        return f"{host}:{port}"

    async def stop(self) -> None:
        await self._server.stop(grace=0)


@dataclass(slots=True)
class Traffic:
    """Bytes that went over a router's streams since the start, gRPC's own framing left out."""

    sent: int = 0
    received: int = 0

    def serialize(self, message: pb.WorkRequest) -> bytes:
        raw: bytes = message.SerializeToString()
        self.sent += len(raw)
        return raw

    def parse(self, raw: bytes) -> pb.WorkResponse:
        self.received += len(raw)
        return pb.WorkResponse.FromString(raw)


class GrpcChannel:
    """The router's end of one stream (`serving.port.Channel`)."""

    def __init__(self, grant: Grant, channel: grpc.aio.Channel, call: Any) -> None:
        self._grant, self._channel, self._call = grant, channel, call

    @classmethod
    async def connect(
        cls,
        grant: Grant,
        *,
        router: str,
        secret: str,
        tls: TlsFiles | None = None,
        timeout_s: float = 5.0,
        traffic: Traffic | None = None,
    ) -> GrpcChannel:
        """Raises WorkerDied when the replica cannot be reached, or does not let us in, within `timeout_s`.

        traffic: where the bytes of this stream are counted too.
        """
        if tls is None:
            channel = grpc.aio.insecure_channel(grant.endpoint, options=_OPTIONS)
        else:
            options = (*_OPTIONS, ("grpc.ssl_target_name_override", TlsFiles.NAME))
            channel = grpc.aio.secure_channel(grant.endpoint, tls.client(), options=options)
        metadata = ((_SECRET, secret), (_INCARNATION, str(grant.incarnation)), (_ROUTER, router))
        traffic = Traffic() if traffic is None else traffic
        call = channel.stream_stream(_WORK, request_serializer=traffic.serialize, response_deserializer=traffic.parse)(
            metadata=metadata
        )
        try:
            async with asyncio.timeout(timeout_s):
                await call.initial_metadata()
                if call.done():  # let in means: headers came, and the call is still open
                    raise WorkerDied(await call.details())
        except BaseException as error:
            await channel.close()
            if isinstance(error, (TimeoutError, grpc.RpcError, WorkerDied)):
                raise WorkerDied(f"{grant.replica} at {grant.endpoint} cannot be reached: {error!r}") from error
            raise
        return cls(grant, channel, call)

    async def send(self, commands: Sequence[Command]) -> None:
        try:
            await self._call.write(wire.encode_commands(commands))
        except (grpc.RpcError, asyncio.InvalidStateError) as error:
            raise WorkerDied(f"{self._grant.replica}: the stream is broken") from error

    async def receive(self) -> Sequence[Reply]:
        try:
            message = await self._call.read()
        except (grpc.RpcError, asyncio.InvalidStateError) as error:
            raise WorkerDied(f"{self._grant.replica}: the stream broke") from error
        if message is grpc.aio.EOF:
            raise WorkerDied(f"{self._grant.replica}: the stream ended")
        return wire.decode_replies(message, self._grant.pool)

    async def close(self) -> None:
        self._call.cancel()
        await self._channel.close()
