"""The data plane over real gRPC, with a worker that needs no model."""

import asyncio
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from specserve.errors import ConfigError, WorkerDied
from specserve.serving.worker import WorkerLoop
from specserve.transport.dataplane import DataPlaneServer, GrpcChannel, TlsFiles, Traffic
from specserve.types import Close, Command, Grant, Reply, Verdict, Verify

SECRET = "a secret"


@dataclass
class Echo:
    """Answers every Verify with the number of its tokens."""

    open: set[int] = field(default_factory=set)
    waiting: list[Verify] = field(default_factory=list)

    def submit(self, command: Command) -> list[Reply]:
        if isinstance(command, Close):
            self.open.discard(command.session)
        elif isinstance(command, Verify):
            self.open.add(command.session)
            self.waiting.append(command)
        return []

    def step(self) -> list[Reply]:
        replies: list[Reply] = [Verdict(c.session, c.base_len, (), len(c.tokens)) for c in self.waiting]
        self.waiting = []
        return replies

    @property
    def busy(self) -> bool:
        return bool(self.waiting)

    def stats(self) -> dict[str, float]:
        return {"sessions": len(self.open)}


@dataclass
class Served:
    loop: WorkerLoop
    server: DataPlaneServer
    grant: Grant

    async def sessions(self) -> float:
        return (await self.loop.stats())["sessions"]

    async def until_sessions(self, count: int) -> None:
        async with asyncio.timeout(10):
            while await self.sessions() != count:
                pass


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with _serve(None) as running:
        yield running


class _serve:
    def __init__(self, tls: TlsFiles | None) -> None:
        self._tls = tls

    async def __aenter__(self) -> Served:
        loop = WorkerLoop(Echo())
        loop.start()
        server = DataPlaneServer(loop, secret=SECRET, incarnation=7, tls=self._tls)
        self._served = Served(loop, server, Grant("pool", "r1", await server.start("127.0.0.1"), 7))
        return self._served

    async def __aexit__(self, *_: object) -> None:
        await self._served.until_sessions(0)
        await self._served.server.stop()
        await self._served.loop.close()


async def _connect(grant: Grant, secret: str = SECRET, tls: TlsFiles | None = None) -> GrpcChannel:
    return await GrpcChannel.connect(grant, router="me", secret=secret, tls=tls, timeout_s=5)


async def test_commands_and_replies_of_many_sessions_share_a_stream(served: Served) -> None:
    channel = await _connect(served.grant)
    await channel.send([Verify(1, 0, (5, 6)), Verify(2, 0, (5,))])
    got: list[Reply] = []
    while len(got) < 2:
        got += await channel.receive()
    assert {reply.session: reply.token for reply in got if isinstance(reply, Verdict)} == {1: 2, 2: 1}
    assert served.server.joined("me")
    await channel.close()


async def test_the_bytes_of_a_routers_streams_are_counted_together(served: Served) -> None:
    traffic = Traffic()
    for session in (1, 2):
        channel = await GrpcChannel.connect(served.grant, router="me", secret=SECRET, traffic=traffic)
        await channel.send([Verify(session, 0, (5, 6))])
        sent, received = traffic.sent, traffic.received
        await channel.receive()
        assert sent == traffic.sent > 0
        assert traffic.received > received
        await channel.close()


async def test_a_stream_that_ends_takes_its_sessions_with_it(served: Served) -> None:
    channel, other = await _connect(served.grant), await _connect(served.grant)
    await channel.send([Verify(1, 0, (5,))])
    await other.send([Verify(2, 0, (5,))])
    await channel.receive()
    await other.receive()
    await channel.close()
    await served.until_sessions(1)
    await other.close()
    await served.until_sessions(0)


@pytest.mark.parametrize(("secret", "incarnation"), [("wrong", 7), (SECRET, 8)], ids=["secret", "incarnation"])
async def test_who_does_not_belong_is_not_let_in(served: Served, secret: str, incarnation: int) -> None:
    with pytest.raises(WorkerDied, match="r1"):
        await _connect(replace(served.grant, incarnation=incarnation), secret)


async def test_a_worker_that_stops_shows_as_died() -> None:
    async with _serve(None) as running:
        channel = await _connect(running.grant)
        await running.server.stop()
        with pytest.raises(WorkerDied):
            await channel.receive()
        with pytest.raises(WorkerDied):
            await channel.send([Close(1)])
        await channel.close()


async def test_an_endpoint_nobody_listens_on_is_dead(served: Served) -> None:
    with pytest.raises(WorkerDied, match="cannot be reached"):
        await GrpcChannel.connect(
            replace(served.grant, endpoint="127.0.0.1:1"), router="me", secret=SECRET, timeout_s=0.5
        )


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, and a certificate for the name that workers go by."""
    path = tmp_path_factory.mktemp("pem")

    def openssl(*args: str) -> None:
        subprocess.run(["openssl", *args], cwd=path, check=True, capture_output=True)

    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca")
    openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", "key.pem", "-out", "csr", "-subj", "/CN=specserve")
    (path / "ext").write_text("subjectAltName=DNS:specserve-worker")
    sign = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "ext"]
    openssl("x509", "-req", "-in", "csr", "-out", "cert.pem", *sign)
    return path


async def test_with_tls_both_sides_must_hold_a_certificate_of_the_authority(pem: Path) -> None:
    tls = TlsFiles(str(pem / "cert.pem"), str(pem / "key.pem"), str(pem / "ca.pem"))
    async with _serve(tls) as running:
        channel = await _connect(running.grant, tls=tls)
        await channel.send([Verify(1, 0, (5,))])
        assert (await channel.receive())[0].session == 1
        await channel.close()
        with pytest.raises(WorkerDied):
            await GrpcChannel.connect(running.grant, router="me", secret=SECRET, timeout_s=1)


def test_a_missing_certificate_is_named() -> None:
    with pytest.raises(ConfigError, match=r"data_plane\.tls: cannot read /nowhere/cert\.pem"):
        TlsFiles("/nowhere/cert.pem", "/nowhere/key.pem", "/nowhere/ca.pem")
