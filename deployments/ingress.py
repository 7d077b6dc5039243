"""How the public gRPC services enter Serve's proxies (`grpc_options.grpc_servicer_functions`)."""

from collections.abc import Sequence
from typing import Any

import grpc
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

from specserve.transport.convert import MAX_REQUEST_BYTES
from specserve.v1.generation_pb2_grpc import add_GenerationServiceServicer_to_server

__all__ = ["add_generation_service", "add_health_service"]


def add_health_service(servicer: Any, server: Any) -> None:
    """grpc.health.v1."""
    add_HealthServicer_to_server(servicer, server)


def add_generation_service(servicer: Any, server: Any) -> None:
    """specserve.v1.GenerationService, its requests handed on as bytes, or as their size when it is too large.

    The router parses them, so that a string that is not UTF-8 and a message that Serve's own 4 MiB between proxy and
    replica would stop are both INVALID_ARGUMENT (grpc and Serve say INTERNAL).
    """
    add_GenerationServiceServicer_to_server(servicer, _RawRequests(server))


class _RawRequests:
    def __init__(self, server: Any) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        for handler in handlers:
            handler._method_handlers = _raw(handler._method_handlers)  # type: ignore[attr-defined]
        self._server.add_generic_rpc_handlers(tuple(handlers))

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        self._server.add_registered_method_handlers(service, _raw(handlers))


def _raw(handlers: dict[str, Any]) -> dict[str, Any]:
    return {name: handler._replace(request_deserializer=_bounded) for name, handler in handlers.items()}


def _bounded(raw: bytes) -> bytes | int:
    return raw if len(raw) <= MAX_REQUEST_BYTES else len(raw)
