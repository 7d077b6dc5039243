"""The Python client against small real gRPC servers."""

from collections.abc import Iterator
from concurrent import futures

import grpc
import pytest

from specserve import AsyncClient, Client
from specserve.errors import Overloaded, Unavailable
from specserve.transport import convert
from specserve.types import Chunk, EmittedToken, Finished, FinishReason, Origin, Started, Usage
from specserve.v1 import generation_pb2 as pb
from specserve.v1 import generation_pb2_grpc as pb_grpc

EVENTS = [Started("r", 1), Chunk((EmittedToken(3, Origin.BONUS),), "x"), Finished(FinishReason.LENGTH, Usage(1, 1, 1))]


class Fake(pb_grpc.GenerationServiceServicer):
    """Fails with the codes it is given, one per call, then answers."""

    def __init__(self, *codes: grpc.StatusCode) -> None:
        self.codes, self.calls = list(codes), 0

    def StreamGenerate(
        self, request: pb.StreamGenerateRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.StreamGenerateResponse]:
        self.calls += 1
        if self.codes:
            context.abort(self.codes.pop(0), "not now")
        for event in EVENTS:
            yield convert.encode_event(event, request.generate.sampling.seed)


@pytest.fixture
def serve() -> Iterator:
    servers = []

    def start(fake: Fake) -> str:
        server = grpc.server(futures.ThreadPoolExecutor(2))
        pb_grpc.add_GenerationServiceServicer_to_server(fake, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(None).wait()


def test_unavailable_is_tried_again_before_the_first_event(serve) -> None:
    fake = Fake(grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAVAILABLE)
    with Client(serve(fake)) as client:
        assert client.generate("p").text == "x"
    assert fake.calls == 3


def test_other_failures_are_raised_at_once_as_our_own_errors(serve) -> None:
    fake = Fake(grpc.StatusCode.RESOURCE_EXHAUSTED)
    with Client(serve(fake)) as client, pytest.raises(Overloaded, match="not now"):
        client.generate("p")
    assert fake.calls == 1


def test_a_server_that_stays_away_is_unavailable() -> None:
    with Client("127.0.0.1:1") as client, pytest.raises(Unavailable):
        client.generate("p")


def test_several_servers_share_the_requests(serve) -> None:
    fakes = [Fake(), Fake()]
    with Client([serve(fake) for fake in fakes]) as client:
        for _ in range(40):
            client.generate("p")
    assert min(fake.calls for fake in fakes) >= 10


async def test_the_async_client_does_the_same(serve) -> None:
    fake = Fake(grpc.StatusCode.UNAVAILABLE)
    async with AsyncClient(serve(fake)) as client:
        answer = await client.generate("p", seed=3)
        assert [event async for event in client.stream("p")] == EVENTS
    assert (answer.text, answer.token_ids, answer.finish_reason) == ("x", (3,), FinishReason.LENGTH)
