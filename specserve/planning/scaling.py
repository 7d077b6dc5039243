"""The autoscaler of a simulation: the real `serving.autoscale.decide` on what simulated replicas report."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

from specserve.aims import aims
from specserve.planning.pools import Pool as Replicas
from specserve.planning.replica import Process, Worker
from specserve.serving.autoscale import Aims, Pool, decide
from specserve.serving.load import Load, RouterLoad, RouterMeter

if TYPE_CHECKING:
    from specserve.planning.simulation import Simulation


def autoscale(simulation: Simulation) -> Process:
    """Report, decide, and act when a decision has stood for as long as it must."""
    env, config = simulation.env, simulation.figures.autoscaling
    window = max(1, round(config.window_s / config.report_interval_s))
    meter = RouterMeter(env.now)
    rounds: deque[RouterLoad] = deque(maxlen=window)
    loads: dict[str, deque[Load]] = {pool.role: deque(maxlen=window) for pool in simulation.pools}
    since: dict[str, tuple[int, float]] = {}  # the way a pool should go, and since when
    short_since: float | None = None
    while True:
        yield env.timeout(config.report_interval_s)
        now = env.now
        rounds.append(meter.read(simulation.stats, now))
        for pool in simulation.pools:
            workers = [seat for seat in pool.running if isinstance(seat, Worker)]
            loads[pool.role].append(_mean([worker.meter.read(worker.gauges(), now) for worker in workers]))
        observed = {pool.role: _observe(pool, loads[pool.role], rounds, now) for pool in simulation.pools}
        verifiers = observed["verifier"]
        short_since = None if verifiers.running >= verifiers.target else now if short_since is None else short_since
        decisions = decide(observed.values(), 0.0 if short_since is None else now - short_since)
        for pool in simulation.pools:
            replicas, scaling = decisions[pool.role].replicas, pool.figures.replicas
            way = (replicas > pool.target) - (replicas < pool.target)
            if since.get(pool.role, (0, 0.0))[0] != way:
                since[pool.role] = (way, now)
            delay_s = scaling.upscale_delay_s if way > 0 else scaling.downscale_delay_s
            if way and now - since[pool.role][1] >= delay_s:
                pool.scale(replicas)
                del since[pool.role]


def _observe(pool: Replicas[Any], loads: deque[Load], rounds: deque[RouterLoad], now: float) -> Pool:
    load, figures = _mean(loads), pool.figures
    drafts = pool.role == "drafter" and any(r.rounds_per_s for r in rounds)
    late = sum(sum(r.late_per_s.values()) for r in rounds) / sum(r.rounds_per_s for r in rounds) if drafts else 0.0
    return Pool(
        name=pool.role,
        role=pool.role,
        aims=Aims(**aims(figures.replicas, min(figures.replicas.target_sessions, figures.max_sessions))),  # type: ignore[arg-type]  # counts are whole
        running=len(pool.running),
        target=pool.target,
        sessions=pool.sessions,
        queue_s=load.queue_s,
        occupancy=load.occupancy,
        busy=load.busy,
        late=late,
        wait=sum(r.draft_wait for r in rounds) / len(rounds) if drafts else 0.0,
        grew_s=now - pool.grew_s,
        shrank_s=now - pool.shrank_s,
        apart=True,
    )


def _mean(loads: Collection[Load]) -> Load:
    if not loads:
        return Load()
    return Load(*(sum(values) / len(loads) for values in zip(*map(astuple, loads), strict=True)))
