"""Errors <-> gRPC status codes."""

from __future__ import annotations

import re

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from specserve import errors

_CODES: tuple[tuple[type[BaseException], grpc.StatusCode], ...] = (
    (errors.InvalidRequest, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.Overloaded, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.Unavailable, grpc.StatusCode.UNAVAILABLE),
    (errors.DeadlineExceeded, grpc.StatusCode.DEADLINE_EXCEEDED),
    (errors.Unauthenticated, grpc.StatusCode.UNAUTHENTICATED),
)


# Serve's proxy reports a router that died under a stream as INTERNAL: nobody is left to say UNAVAILABLE.
_DEAD_ROUTER = re.compile(r"actor \w* ?(died|is unavailable|is dead|was killed)", re.IGNORECASE)


def code_of(error: BaseException) -> grpc.StatusCode:
    """INTERNAL for everything that is not the caller's or the weather's fault."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), grpc.StatusCode.INTERNAL)


def retry_details(error: BaseException) -> bytes | None:
    """`grpc-status-details-bin` for an Overloaded: a google.rpc.Status that carries RetryInfo."""
    if not isinstance(error, errors.Overloaded):
        return None
    delay = duration_pb2.Duration()
    delay.FromMilliseconds(int(error.retry_after_s * 1000))
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    status = status_pb2.Status(code=code_of(error).value[0], message=str(error), details=[detail])
    return bytes(status.SerializeToString())


def error_of(rpc_error: grpc.RpcError) -> errors.SpecserveError:
    """The error a client raises for a failed call; the server's message is kept."""
    code, message = rpc_error.code(), rpc_error.details() or ""
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        field, _, rest = message.partition(" ")
        bound, _, value = rest.partition("; got ")
        return errors.InvalidRequest(field, bound, _Verbatim(value))
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return errors.Overloaded(message, _retry_after(rpc_error))
    if code is grpc.StatusCode.INTERNAL and _DEAD_ROUTER.search(message):
        return errors.Unavailable(message)
    for kind, known in _CODES:
        if code is known:
            return kind(message)  # type: ignore[return-value]
    return errors.SpecserveError(f"{code.name}: {message}")


def _retry_after(rpc_error: grpc.RpcError) -> float:
    status = rpc_status.from_call(rpc_error) if isinstance(rpc_error, grpc.Call) else None
    details: list[any_pb2.Any] = list(status.details) if status is not None else []
    for detail in details:
        info = error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            return float(info.retry_delay.ToMilliseconds()) / 1000
    return 1.0


class _Verbatim(str):
    """A value that the server has already printed: shown as it came."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)
