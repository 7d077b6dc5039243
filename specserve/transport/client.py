"""The Python client: `Client` for threads, `AsyncClient` for asyncio. Neither loads torch or ray."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

from specserve.errors import InvalidRequest
from specserve.transport import convert, convert_infill
from specserve.transport.status import error_of
from specserve.types import (
    INFILL_DRAFTERS,
    Chunk,
    Constraint,
    EmittedToken,
    Event,
    Finished,
    FinishReason,
    Gap,
    GenerationRequest,
    InfillEvent,
    InfillFinished,
    InfillRequest,
    Sampling,
    Speculation,
    SpeculationMode,
    Started,
    TokenIds,
    Usage,
)
from specserve.v1 import generation_pb2 as pb
from specserve.v1 import generation_pb2_grpc as pb_grpc

_SERVICE_CONFIG = json.dumps(
    {
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": [
            {
                "name": [{"service": "specserve.v1.GenerationService"}],
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "2s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ],
    }
)
_OPTIONS = (
    ("grpc.service_config", _SERVICE_CONFIG),
    ("grpc.enable_retries", 1),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.max_receive_message_length", 64 << 20),
)


@dataclass(frozen=True, slots=True)
class Generation:
    """A finished generation. `tokens` say how each token came to be."""

    text: str
    tokens: tuple[EmittedToken, ...]
    finish_reason: FinishReason
    usage: Usage
    request_id: str

    @property
    def token_ids(self) -> TokenIds:
        return tuple(token.id for token in self.tokens)


def request(
    prompt: str | Sequence[int],
    *,
    mode: SpeculationMode | str = SpeculationMode.AUTO,
    drafters: Sequence[str] = (),
    max_draft_tokens: int | None = None,
    rule: str | None = None,
    branches: int | None = None,
    max_draft_nodes: int | None = None,
    reference: str = "",
    tenant: str = "",
    private: bool = False,
    timeout_s: float | None = None,
    json_schema: str | Mapping[str, Any] | None = None,
    regex: str | None = None,
    choice: Sequence[str] | None = None,
    **sampling: Any,
) -> GenerationRequest:
    """A request from keywords: the fields of `types.Sampling`, and how to speculate. An unnamed seed is drawn.

    `reference` is text that the output may repeat: drafters copy from it, the target never sees it.
    One of `json_schema` (JSON text, or what it says), `regex` and `choice` constrains the whole output.

    >>> request("def add(a, b):", max_tokens=32, temperature=0.8, seed=7, drafters=["ngram"]).sampling.seed
    7
    """
    sampling.setdefault("seed", secrets.randbits(63))
    for name in ("stop", "stop_token_ids"):
        if name in sampling:
            sampling[name] = tuple(sampling[name])
    if json_schema is not None and not isinstance(json_schema, str):
        json_schema = json.dumps(json_schema)
    constraint = Constraint(json_schema, regex, None if choice is None else tuple(choice))
    return GenerationRequest(
        prompt if isinstance(prompt, str) else tuple(prompt),
        Sampling(**sampling),
        Speculation(
            SpeculationMode(mode),
            tuple(drafters),
            max_draft_tokens,
            rule,
            branches,
            max_draft_nodes,
            reference,
            tenant,
            private,
        ),
        timeout_s,
        constraint=constraint if constraint.kinds else None,
    )


Segments = Sequence[str | Sequence[int] | Gap]


def infill_request(
    segments: Segments,
    *,
    drafter: str = "self",
    max_draft_tokens: int = 5,
    timeout_s: float | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int | None = None,
) -> InfillRequest:
    """A request to fill gaps. An unnamed seed is drawn.

    >>> infill_request(["def add(a, b):", Gap(8, exact=False), "return total"], seed=7).drafter
    'self'
    """
    given = tuple(part if isinstance(part, str | Gap) else tuple(part) for part in segments)
    seed = secrets.randbits(63) if seed is None else seed
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    if drafter not in INFILL_DRAFTERS:
        raise InvalidRequest("drafting.drafter", f"must be one of {', '.join(INFILL_DRAFTERS)}", drafter)
    return InfillRequest(given, sampling, drafter, max_draft_tokens, timeout_s)


def _address(address: str | Sequence[str]) -> str:
    """Several hosts become one name that gRPC resolves to all of them, for round-robin."""
    if isinstance(address, str):
        return address
    return "ipv4:" + ",".join(address)


def _metadata(key: str | None) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key}"),) if key else ()


class _Collector:
    """Joins a stream's events into one Generation."""

    def __init__(self) -> None:
        self._request_id, self._texts = "", list[str]()
        self._tokens: list[EmittedToken] = []
        self.result: Generation | None = None

    def add(self, event: Event) -> None:
        if isinstance(event, Started):
            self._request_id = event.request_id
        elif isinstance(event, Chunk):
            self._texts.append(event.text)
            self._tokens.extend(event.tokens)
        else:
            self.result = Generation(
                "".join(self._texts), tuple(self._tokens), event.reason, event.usage, self._request_id
            )


class Client:
    """Blocking client of one server, or of several by round-robin. Safe to share between threads.

    Args:
        address: ``host:port`` (a DNS name with many addresses is balanced), or a list of ``ip:port``.
        tls: channel credentials; None is plain text.
        key: client key, sent as a bearer token.

    Raises (every call): the errors of `specserve.errors`; UNAVAILABLE is retried before the first event.
    """

    def __init__(
        self,
        address: str | Sequence[str] = "localhost:9000",
        *,
        tls: grpc.ChannelCredentials | None = None,
        key: str | None = None,
    ) -> None:
        target = _address(address)
        self._channel = (
            grpc.insecure_channel(target, _OPTIONS) if tls is None else grpc.secure_channel(target, tls, _OPTIONS)
        )
        self._stub = pb_grpc.GenerationServiceStub(self._channel)
        self._metadata = _metadata(key)

    def stream(self, prompt: str | Sequence[int] | GenerationRequest, **options: Any) -> Iterator[Event]:
        """Events as they come; closing the iterator cancels the request. `options` as in `request`."""
        call = self._stub.StreamGenerate(_stream_message(prompt, options), metadata=self._metadata)
        try:
            for message in call:
                yield convert.decode_event(message)
        except grpc.RpcError as error:
            raise error_of(error) from error
        finally:
            call.cancel()

    def generate(self, prompt: str | Sequence[int] | GenerationRequest, **options: Any) -> Generation:
        """The whole answer. `options` as in `request`."""
        collector = _Collector()
        for event in self.stream(prompt, **options):
            collector.add(event)
        assert collector.result is not None
        return collector.result

    def infill(self, segments: Segments, **options: Any) -> InfillFinished:
        """The segments with their gaps filled; `options` as in `infill_request`."""
        wish = convert_infill.infill_message_of(infill_request(segments, **options))
        try:
            return convert_infill.decode_infill_response(self._stub.Infill(wish, metadata=self._metadata))
        except grpc.RpcError as error:
            raise error_of(error) from error

    def stream_infill(self, segments: Segments, **options: Any) -> Iterator[InfillEvent]:
        """Tokens of gaps as they become final; closing the iterator cancels the request."""
        wish = convert_infill.infill_message_of(infill_request(segments, **options))
        call = self._stub.StreamInfill(pb.StreamInfillRequest(infill=wish), metadata=self._metadata)
        try:
            for message in call:
                yield convert_infill.decode_infill_event(message)
        except grpc.RpcError as error:
            raise error_of(error) from error
        finally:
            call.cancel()

    def info(self) -> pb.GetServerInfoResponse:
        """The model, the drafters and the limits of the server."""
        try:
            info: pb.GetServerInfoResponse = self._stub.GetServerInfo(
                pb.GetServerInfoRequest(), metadata=self._metadata, timeout=30
            )
        except grpc.RpcError as error:
            raise error_of(error) from error
        return info

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()


class AsyncClient:
    """As `Client`, for asyncio."""

    def __init__(
        self,
        address: str | Sequence[str] = "localhost:9000",
        *,
        tls: grpc.ChannelCredentials | None = None,
        key: str | None = None,
    ) -> None:
        target = _address(address)
        self._channel = (
            grpc.aio.insecure_channel(target, _OPTIONS)
            if tls is None
            else grpc.aio.secure_channel(target, tls, _OPTIONS)
        )
        self._stub: Any = pb_grpc.GenerationServiceStub(self._channel)
        self._metadata = _metadata(key)

    async def stream(self, prompt: str | Sequence[int] | GenerationRequest, **options: Any) -> AsyncIterator[Event]:
        """Events as they come; closing the generator cancels the request."""
        call = self._stub.StreamGenerate(_stream_message(prompt, options), metadata=self._metadata)
        try:
            async for message in call:
                yield convert.decode_event(message)
        except grpc.RpcError as error:
            raise error_of(error) from error
        finally:
            call.cancel()

    async def generate(self, prompt: str | Sequence[int] | GenerationRequest, **options: Any) -> Generation:
        """The whole answer."""
        collector = _Collector()
        async for event in self.stream(prompt, **options):
            collector.add(event)
        assert collector.result is not None
        return collector.result

    async def infill(self, segments: Segments, **options: Any) -> InfillFinished:
        """The segments with their gaps filled; `options` as in `infill_request`."""
        wish = convert_infill.infill_message_of(infill_request(segments, **options))
        try:
            return convert_infill.decode_infill_response(await self._stub.Infill(wish, metadata=self._metadata))
        except grpc.RpcError as error:
            raise error_of(error) from error

    async def stream_infill(self, segments: Segments, **options: Any) -> AsyncIterator[InfillEvent]:
        """Tokens of gaps as they become final; closing the generator cancels the request."""
        wish = convert_infill.infill_message_of(infill_request(segments, **options))
        call = self._stub.StreamInfill(pb.StreamInfillRequest(infill=wish), metadata=self._metadata)
        try:
            async for message in call:
                yield convert_infill.decode_infill_event(message)
        except grpc.RpcError as error:
            raise error_of(error) from error
        finally:
            call.cancel()

    async def info(self) -> pb.GetServerInfoResponse:
        """The model, the drafters and the limits of the server."""
        try:
            response: pb.GetServerInfoResponse = await self._stub.GetServerInfo(
                pb.GetServerInfoRequest(), metadata=self._metadata, timeout=30
            )
        except grpc.RpcError as error:
            raise error_of(error) from error
        return response

    async def close(self) -> None:
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        await self.close()


def _stream_message(prompt: str | Sequence[int] | GenerationRequest, options: dict[str, Any]) -> Any:
    made = prompt if isinstance(prompt, GenerationRequest) else request(prompt, **options)
    return pb.StreamGenerateRequest(generate=convert.message_of(made))


__all__ = ["AsyncClient", "Client", "Finished", "Gap", "Generation", "infill_request", "request"]
