"""How `serving` meets the world. Three implementations: Ray + gRPC, in-process, and a scripted one for tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from specserve.types import Command, Grant, Reply


class Lease(Protocol):
    """A session's hold on one replica. Always close it, whatever happened."""

    grant: Grant

    async def died(self) -> None:
        """Returns when the replica behind this lease is gone (and not before)."""

    async def close(self) -> None:
        """Give the hold back. Idempotent; never raises."""


class Channel(Protocol):
    """One ordered, bidirectional stream to one replica, shared by all sessions that hold a lease there."""

    async def send(self, commands: Sequence[Command]) -> None:
        """Send one batch as one message. Raises WorkerDied when the stream is broken."""

    async def receive(self) -> Sequence[Reply]:
        """The next message. Raises WorkerDied when the stream has ended."""

    async def close(self) -> None:
        """End the stream. Idempotent; never raises."""


class Port(Protocol):
    """Leases are the control plane, channels the data plane."""

    async def lease(self, pool: str) -> Lease:
        """Wait for a replica of `pool` that has room. The caller bounds the wait: when cancelled, no lease is left.

        Raises:
            Unavailable: the pool has no replica and gets none.
            Overloaded: every replica is full and the queue is too.
        """

    async def connect(self, grant: Grant) -> Channel:
        """Open the data-plane stream to the replica of a grant. Raises WorkerDied when it cannot be reached."""
