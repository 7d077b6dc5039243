"""One tree of errors. The kind decides the status code; the message says what must hold, what was given, what to do."""

from __future__ import annotations


class SpecserveError(Exception):
    """Root of every error that specserve raises on purpose."""


class InvalidRequest(SpecserveError):
    """The caller's request breaks a bound.

    Args:
        field: the offending field as the API names it, e.g. ``sampling.temperature``.
        bound: what must hold, e.g. ``must be between 0 and 100``.
        value: what was given (shortened in the message when long).
    """

    def __init__(self, field: str, bound: str, value: object = None) -> None:
        self.field, self.bound, self.value = field, bound, value
        given = repr(value)
        super().__init__(f"{field} {bound}; got {given if len(given) <= 80 else given[:77] + '...'}")

    def __reduce__(self) -> tuple[type[InvalidRequest], tuple[str, str, object]]:
        return InvalidRequest, (self.field, self.bound, self.value)


class ConfigError(SpecserveError):
    """The configuration, a model directory or a file named by it cannot be used."""


class Overloaded(SpecserveError):
    """No room now: a queue or a pool is full. Carries when to try again, in seconds."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message)

    def __reduce__(self) -> tuple[type[Overloaded], tuple[str, float]]:
        return Overloaded, (str(self), self.retry_after_s)


class Unavailable(SpecserveError):
    """A worker, a pool or the server itself cannot be reached now; the same call may succeed later."""


class WorkerDied(Unavailable):
    """The replica behind a lease is gone; its sessions must be rebuilt elsewhere."""


class DeadlineExceeded(SpecserveError):
    """The request's own time limit ran out."""


class Unauthenticated(SpecserveError):
    """A secret or key is missing or wrong."""


class EngineError(SpecserveError):
    """The forward pass of one session gave something that cannot be verified (NaN, infinity)."""


class VerifyError(SpecserveError):
    """The tensors given to a verification rule do not fit together."""
