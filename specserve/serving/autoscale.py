"""How many replicas each pool should have. Pure: what the replicas report in, numbers and reasons out.

A signal asks for replicas in proportion to how far it is from its aim; the pool follows the one that asks for most.
Verifiers follow sessions, queue delay and pool occupancy. Drafters follow their own busy share, scaled to the verifiers
that are still on their way, and where they are busy, the rounds that did without them and the rounds' wait for them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

_DOUBLE = 2.0  # a signal asks for at most twice the replicas there are: beyond, it says nothing about how many
_IDLE = 0.5  # of the busy share aimed at: below, more replicas of a pool would not be faster

Role = Literal["router", "verifier", "drafter", "infill"]


@dataclass(frozen=True, slots=True)
class Aims:
    """What a pool is scaled for. A signal whose aim is infinite is not followed.

    Args:
        least, most: replicas.
        sessions: open leases per replica.
        queue_s: mean wait of a call before its step, seconds.
        occupancy: share of the token pool promised to sessions.
        busy: share of time spent computing.
        late: share of rounds that go on without the draft they waited for.
        wait: share of a round's time spent waiting for drafts.
        hysteresis: a pool shrinks only when it would still have this share of room to spare.
        cooldown_s: after growing, a pool does not shrink for so long.
    """

    least: int = 1
    most: int = 1
    sessions: float = 8.0
    queue_s: float = math.inf
    occupancy: float = math.inf
    busy: float = math.inf
    late: float = math.inf
    wait: float = math.inf
    hysteresis: float = 0.2
    cooldown_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Pool:
    """One pool as it is: replicas and what they report, as means over the replicas and over a window of time.

    Args:
        running: replicas that serve; `target` of them were asked for.
        sessions: open leases, and calls that wait for one.
        grew_s, shrank_s: seconds since the pool last did.
        apart: its replicas cannot stand where a verifier could.
    """

    name: str
    role: Role
    aims: Aims
    running: int
    target: int
    sessions: float = 0.0
    queue_s: float = 0.0
    occupancy: float = 0.0
    busy: float = 0.0
    late: float = 0.0
    wait: float = 0.0
    grew_s: float = math.inf
    shrank_s: float = math.inf
    apart: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """Replicas that a pool should have, the signal that says so, and why in words."""

    replicas: int
    signal: str
    reason: str


def decide(pools: Iterable[Pool], short_s: float = 0.0) -> dict[str, Decision]:
    """What every pool should have, by name.

    Args:
        short_s: for how long some verifier replica has been asked for and has not come.
    """
    pools = list(pools)
    decisions = {pool.name: _follow(pool, 1.0) for pool in pools if pool.role != "drafter"}
    running, wanted, short = 0, 0, False
    for pool in pools:
        if pool.role == "verifier":
            asked = max(decisions[pool.name].replicas, pool.target)
            running, wanted, short = running + pool.running, wanted + asked, short or pool.running < asked
    growth = max(1.0, wanted / running) if running else 1.0
    for pool in pools:
        if pool.role == "drafter":
            decision = _follow(pool, growth)
            decisions[pool.name] = _yield(pool, decision, short_s) if short and not pool.apart else decision
    return decisions


def _follow(pool: Pool, growth: float) -> Decision:
    aims, now = pool.aims, pool.target
    demand, signal, reason = _demand(pool, growth)
    up = min(max(_whole(demand), aims.least), aims.most)
    if up > now:
        return Decision(up, signal, reason)
    down = min(max(_whole(demand * (1 + aims.hysteresis)), aims.least), aims.most)
    if down >= now:
        return Decision(now, "steady", reason)
    if pool.grew_s < aims.cooldown_s and now <= aims.most:
        return Decision(now, "cooldown", f"grew {pool.grew_s:.0f} s ago; {reason}")
    return Decision(down, signal, reason)


def _demand(pool: Pool, growth: float) -> tuple[float, str, str]:
    """(replicas, signal, reason) of the signal that asks for most."""
    aims = pool.aims
    asks = [(pool.sessions / aims.sessions, "sessions", f"{pool.sessions:.1f} sessions, {aims.sessions:g} a replica")]
    if pool.sessions > 0:  # without, nobody waits for anything: what the others say is of the past
        asks.append(_ask(pool, "queue", pool.queue_s, aims.queue_s, "s before a step"))
        asks.append(_ask(pool, "occupancy", pool.occupancy, aims.occupancy, "of the pool promised"))
        busy = pool.running * pool.busy * growth / aims.busy
        asks.append((busy, "busy", f"busy {pool.busy:.2f} of {aims.busy:g}, with {growth:.2g} times the verifiers"))
        if pool.busy >= _IDLE * aims.busy:
            asks.append(_ask(pool, "late", pool.late, aims.late, "of the rounds without their draft"))
            asks.append(_ask(pool, "wait", pool.wait, aims.wait, "of the rounds' time waiting for drafts"))
    return max(asks)


def _ask(pool: Pool, signal: str, value: float, aim: float, what: str) -> tuple[float, str, str]:
    return pool.running * min(value / aim, _DOUBLE), signal, f"{value:.3g} {what}, aim {aim:g}"


def _yield(pool: Pool, decision: Decision, short_s: float) -> Decision:
    """Verifiers come first: while one waits for a node, drafters do not grow, and after a while they make room."""
    aims = pool.aims
    spare = pool.target > max(aims.least, 1)
    if short_s > aims.cooldown_s and pool.shrank_s > aims.cooldown_s and spare:
        fewer = min(pool.target - 1, decision.replicas)
        return Decision(fewer, "verifiers-first", f"a verifier has waited {short_s:.0f} s for a node")
    if decision.replicas > pool.target:
        return Decision(pool.target, "verifiers-first", f"a verifier is on its way; {decision.reason}")
    return decision


def _whole(replicas: float) -> int:
    return math.ceil(replicas - 1e-9)
