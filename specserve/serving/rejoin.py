"""When a batch is worth waiting for: sessions that have just been answered and will be back in a moment."""

from __future__ import annotations

import math

_KEEP = 0.95


class Rejoin:
    """Two half batches cost the fixed part of a step more than a whole one does, so a shorter wait than that pays.

    Without it the first session to come back starts a step alone, and two groups alternate for ever. Times in seconds,
    of one monotonic clock.
    """

    def __init__(self) -> None:
        self._answered: dict[int, float] = {}  # has its reply and has not come back: when it got it
        self._due: set[int] = set()  # of these, the ones that the next step may wait for
        self._until = 0.0
        self._least_s = math.inf  # the shortest step so far: about what a step costs, however little it has to do
        self._away_s = 0.0  # how long sessions take to come back

    def answered(self, session: int, now: float) -> None:
        """It has its reply, and will be back unless that was its last."""
        self._answered[session] = now
        self._due.add(session)
        # Twice the mean, so that the slower half counts too.
        self._until = now + min(2 * self._away_s, self._least_s) if self._away_s < self._least_s else 0.0

    def back(self, session: int, at: float) -> None:
        """Its next call came at `at`."""
        self._due.discard(session)
        answered = self._answered.pop(session, None)
        if answered is not None:
            self._away_s += (1 - _KEEP) * (at - answered - self._away_s)

    def gone(self, session: int) -> None:
        """It will not be back."""
        self._due.discard(session)
        self._answered.pop(session, None)

    def stepped(self, seconds: float) -> None:
        """A step took so long. Who is not back by now is not waited for any more."""
        self._least_s = min(self._least_s, seconds)
        self._due.clear()

    def wait(self, now: float) -> float:
        """How long the next step should still wait."""
        return max(0.0, self._until - now) if self._due else 0.0
