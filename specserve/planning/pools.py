"""Simulated pools: leases on the replicas of one deployment, who waits for one, and what they cost."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from simpy import Environment, Event

from specserve.planning.figures import Replica
from specserve.planning.replica import Seat, then
from specserve.serving.autoscale import Role

S = TypeVar("S", bound=Seat)


class Pool(Generic[S]):
    """Leases go to the less used of two replicas, as Serve's calls do; without room they wait, first come first served.

    Args:
        make: a new replica.
        replicas: running from the start.
    """

    def __init__(
        self, env: Environment, role: Role, figures: Replica, make: Callable[[], S], replicas: int, rng: random.Random
    ) -> None:
        self.env, self.role, self.figures = env, role, figures
        self._make, self._rng = make, rng
        self.seats: list[S] = []  # all that cost: those that start, run or drain
        self.waiting: deque[Event] = deque()
        self._spent_s = 0.0  # of replicas that are gone
        self.grew_s = self.shrank_s = -float("inf")
        for _ in range(replicas):
            self._add().running = True

    @property
    def running(self) -> list[S]:
        return [seat for seat in self.seats if seat.running and not seat.leaving]

    @property
    def target(self) -> int:
        return sum(not seat.leaving for seat in self.seats)

    @property
    def sessions(self) -> int:
        """Open leases, and calls that wait for one."""
        return sum(seat.sessions for seat in self.seats if not seat.leaving) + len(self.waiting)

    @property
    def replica_hours(self) -> float:
        """Paid for until now."""
        return (self._spent_s + sum(self.env.now - seat.asked_s for seat in self.seats)) / 3600

    def lease(self) -> Event:
        """Happens with a replica as its value."""
        granted = self.env.event()
        self.waiting.append(granted)
        self._grant()
        return granted

    def give_up(self, granted: Event) -> None:
        """Wait no more for this lease."""
        if granted in self.waiting:
            self.waiting.remove(granted)

    def release(self, seat: S) -> None:
        seat.sessions -= 1
        if seat.leaving and seat.sessions == 0:
            self._end(seat)
        else:
            self._grant()

    def scale(self, replicas: int) -> None:
        """Start new replicas, or let surplus ones drain: those first that have least to lose."""
        now, change = self.env.now, replicas - self.target
        if change > 0:
            self.grew_s = now
        elif change < 0:
            self.shrank_s = now
        for _ in range(change):
            self._start(self._add())
        stay = [seat for seat in self.seats if not seat.leaving]
        for seat in sorted(stay, key=lambda seat: (seat.running, seat.sessions))[: max(0, -change)]:
            seat.leaving = True
            if seat.sessions == 0:
                self._end(seat)

    def _add(self) -> S:
        seat = self._make()
        self.seats.append(seat)
        return seat

    def _start(self, seat: S) -> None:
        def up() -> None:
            if not seat.leaving:
                seat.running = True
                self._grant()

        then(self.env, self.figures.start_s, up)

    def _end(self, seat: S) -> None:
        self.seats.remove(seat)
        self._spent_s += self.env.now - seat.asked_s

    def _grant(self) -> None:
        while self.waiting and (seat := self._choose()) is not None:
            seat.sessions += 1
            self.waiting.popleft().succeed(seat)

    def _choose(self) -> S | None:
        two = self._rng.sample(self.seats, min(2, len(self.seats)))
        fit = [seat for seat in two if seat.running and not seat.leaving and seat.sessions < seat.limit]
        if not fit:  # rare: look at all
            fit = [seat for seat in self.running if seat.sessions < seat.limit]
        return min(fit, key=lambda seat: seat.sessions, default=None)
