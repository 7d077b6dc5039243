"""Simulated workers: they take what has arrived, are busy for as long as it costs, and answer.

The order of things is that of `serving.worker.WorkerLoop` and of the verifier's backend; when a batch waits for
sessions that will be back is decided by the real `serving.rejoin.Rejoin`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import Any

from simpy import Environment, Event

from specserve.planning.figures import Drafter, Router, Target
from specserve.serving.load import Meter
from specserve.serving.rejoin import Rejoin

Process = Generator[Event, Any, Any]  # of the simulation; what it returns is its caller's


@dataclass(slots=True)
class Call:
    """What a session asks of a worker: positions still to compute, or tokens to draft. `reply` happens when the answer
    has come back to the router."""

    session: int
    tokens: int
    reply: Event
    prompt: bool = False
    came_s: float = 0.0


@dataclass(slots=True)
class Totals:
    """As replicas count them; see `serving.load.Meter`."""

    busy_s: float = 0.0
    calls: float = 0.0
    wait_s: float = 0.0
    latency_s: float = 0.0
    tokens_seen: float = 0.0
    steps: float = 0.0


class Seat:
    """What leases are counted on."""

    def __init__(self, env: Environment, limit: int) -> None:
        self.env, self.limit = env, limit
        self.sessions = 0
        self.asked_s = env.now  # for: it costs from then on
        self.running = False
        self.leaving = False


class RouterReplica(Seat):
    """Handles what has come, all of it, and then sends what that led to: calls that belong together travel together."""

    def __init__(self, env: Environment, figures: Router) -> None:
        super().__init__(env, figures.max_sessions)
        self._message_s, self._hop_s = figures.message_ms / 1e3, figures.call_ms / 2e3
        self._out: list[tuple[Worker, Call]] = []
        self._busy = False

    def send(self, worker: Worker, call: Call) -> None:
        """A reply has come, and this call follows from it."""
        self._out.append((worker, call))
        if not self._busy:
            self._busy = True
            then(self.env, self._message_s, self._handle)

    def _handle(self) -> None:
        """One is handled; so are, in their time, those that have come meanwhile."""
        batch, self._out = self._out, []
        if len(batch) == 1:
            self._sent(batch)
        else:
            then(self.env, (len(batch) - 1) * self._message_s, partial(self._sent, batch))

    def _sent(self, batch: list[tuple[Worker, Call]]) -> None:
        then(self.env, self._hop_s, partial(_arrive, batch))
        if self._out:
            then(self.env, self._message_s, self._handle)
        else:
            self._busy = False


class Worker(Seat):
    """One replica. Subclasses say what a step takes and how long that takes."""

    def __init__(self, env: Environment, limit: int, router: Router) -> None:
        super().__init__(env, limit)
        self.totals = Totals()
        self.meter = Meter(env.now)
        self._hop_s = router.call_ms / 2e3
        self._queue: list[Call] = []
        self._rejoin = Rejoin()
        self._wake: Event | None = None
        env.process(self._run())

    def arrive(self, call: Call) -> None:
        """The call is there."""
        call.came_s = now = self.env.now
        self._rejoin.back(call.session, now)
        self._queue.append(call)
        if self._wake is not None and (len(self._queue) == 1 or not self._rejoin.wait(now)):
            self._rouse(self._wake)

    def gone(self, session: int) -> None:
        self._rejoin.gone(session)

    def gauges(self) -> dict[str, float]:
        totals = self.totals
        return {name: getattr(totals, name) for name in Totals.__slots__}

    def _take(self) -> tuple[list[Call], float]:
        """(calls that the next step answers, its seconds); calls it only begins stay in the queue."""
        raise NotImplementedError

    def _run(self) -> Process:
        env, rejoin, totals = self.env, self._rejoin, self.totals
        while True:
            if not self._queue:
                yield self._sleep()
                continue
            pause = rejoin.wait(env.now)
            if pause > 1e-9:
                wake = self._sleep()
                then(env, pause, partial(self._rouse, wake))
                yield wake
                continue
            done, seconds = self._take()
            began = env.now
            yield env.timeout(seconds)
            now = env.now
            rejoin.stepped(seconds)
            totals.busy_s += seconds
            totals.steps += 1
            for call in done:
                rejoin.answered(call.session, now)
                totals.calls += 1
                totals.latency_s += now - call.came_s
                totals.wait_s += began - call.came_s
            then(env, self._hop_s, partial(_reply, done))

    def _sleep(self) -> Event:
        self._wake = wake = self.env.event()
        return wake

    def _rouse(self, wake: Event) -> None:
        if self._wake is wake:
            self._wake = None
            wake.succeed()


class VerifierReplica(Worker):
    """Rounds and prompts take turns, as in the engine; a prompt takes several steps when it is long."""

    def __init__(self, env: Environment, figures: Target, router: Router) -> None:
        super().__init__(env, figures.max_sessions, router)
        self._figures = figures
        self._prompt_next = False
        self.promised = 0  # tokens of the pool
        self._prompts = 0  # in the queue

    def arrive(self, call: Call) -> None:
        self._prompts += call.prompt
        super().arrive(call)

    def gauges(self) -> dict[str, float]:
        slots = float(self._figures.slots)
        return {**super().gauges(), "slots": slots, "slots_free": slots - self.promised}

    def _take(self) -> tuple[list[Call], float]:
        figures, queue = self._figures, self._queue
        prompt = self._prompts > 0 and (self._prompt_next or self._prompts == len(queue))
        self._prompt_next = not prompt
        positions, rows = 0, 0
        done: list[Call] = []
        left: list[Call] = []
        limit = figures.prefill_chunk if prompt else figures.max_batch_tokens
        full = False
        for call in queue:
            piece = min(call.tokens, figures.prefill_chunk)
            full = full or (positions > 0 and positions + piece > limit)
            if full or call.prompt != prompt:
                left.append(call)
                continue
            positions += piece
            rows += 1
            call.tokens -= piece
            (left if call.tokens else done).append(call)
        self._queue = left
        self._prompts -= len(done) if prompt else 0
        self.totals.tokens_seen += positions
        return done, figures.pass_ms(rows, positions) / 1e3


class DrafterReplica(Worker):
    """Drafts for all that have asked, each as deep as asked."""

    def __init__(self, env: Environment, figures: Drafter, router: Router) -> None:
        super().__init__(env, figures.max_sessions, router)
        self._figures = figures

    def _take(self) -> tuple[list[Call], float]:
        done, self._queue = self._queue, []
        figures, tokens = self._figures, sum(call.tokens for call in done)
        deepest = max(1 if call.prompt else call.tokens for call in done)
        self.totals.tokens_seen += tokens
        return done, (figures.call_ms + deepest * figures.step_ms + tokens * figures.token_ms) / 1e3


def then(env: Environment, seconds: float, do: Callable[[], None]) -> None:
    """Do it so long from now."""
    after = env.timeout(seconds)
    assert after.callbacks is not None
    after.callbacks.append(lambda _: do())


def _arrive(batch: list[tuple[Worker, Call]]) -> None:
    for worker, call in batch:
        worker.arrive(call)


def _reply(calls: list[Call]) -> None:
    for call in calls:
        call.reply.succeed()
