"""When a batch is worth waiting for: sessions that have just been answered and will be back in a moment."""

from __future__ import annotations

import math

_KEEP = 0.95
_HICCUP = 3.0  # a step that took longer than so many mean ones counts as so many: a prompt's piece is no round


class Rejoin:
    """A session that misses a step waits for all of it, so waiting for the sessions that are away for less pays.

    Without it the first session to come back starts a step alone, and two groups alternate for ever: both pay the fixed
    part of a step, and each waits for the other's. Times in seconds, of one monotonic clock.
    """

    def __init__(self) -> None:
        self._answered: dict[int, float] = {}  # has its reply and has not come back: when it got it
        self._due: set[int] = set()  # of these, the ones that the next step may wait for
        self._until = 0.0
        self._step_s = math.inf  # how long steps take
        self._away_s = 0.0  # how long sessions take to come back

    def answered(self, session: int, now: float) -> None:
        """It has its reply, and will be back unless that was its last."""
        self._answered[session] = now
        self._due.add(session)
        # Twice the mean, so that the slower half counts too.
        self._until = now + min(2 * self._away_s, self._step_s) if self._away_s < self._step_s else 0.0

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
        if self._step_s == math.inf:
            self._step_s = seconds
        self._step_s += (1 - _KEEP) * (min(seconds, _HICCUP * self._step_s) - self._step_s)
        self._due.clear()

    def wait(self, now: float) -> float:
        """How long the next step should still wait."""
        return max(0.0, self._until - now) if self._due else 0.0
