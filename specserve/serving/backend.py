"""The worker's seam: what a verifier or a drafter computes, without how its commands arrive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from specserve.types import Command, Reply


class Backend(Protocol):
    """Owns a worker's sessions. Used from one thread only; never blocks but to compute.

    A backend is a cache: the router's session is the truth. It holds the committed tokens that it was sent, and
    a verifier also those of its own last verdict (the accepted path and the token after it), which are not sent
    again. Where a command's `base_len` is not what it holds it answers `SessionLost`, but for 0: that opens the
    session anew. A session has at most one command under way.
    """

    def submit(self, command: Command) -> Sequence[Reply]:
        """Take one command in. Returns the replies that need no computing (session lost, refused)."""

    def step(self) -> Sequence[Reply]:
        """One bounded piece of work (at most one forward pass of one batch); the replies it finished."""

    @property
    def busy(self) -> bool:
        """Whether `step` has work to do now. While replies are owed it is asked again by the clock, so a backend
        may wait for room or for a deadline of its own."""

    def stats(self) -> dict[str, float]:
        """Gauges for metrics and autoscaling: open sessions, slots used and free, tokens seen, seconds busy."""
