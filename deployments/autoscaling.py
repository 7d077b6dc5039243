"""Serve's application-level autoscaling policy: contexts in, replica counts out. `serving.autoscale` decides.

In a Serve config: `applications[0].autoscaling_policy: {policy_function: deployments.autoscaling:Policy}`. It runs in
Serve's controller, so the package must be importable on the head node.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from deployments.metrics import Exporter
from specserve.config import Placement
from specserve.serving.autoscale import Aims, Decision, Pool, decide
from specserve.serving.metrics import AUTOSCALING, Sample

POLICY = "deployments.autoscaling:Policy"
_DECIDE_S = 1.0  # Serve asks ten times a second; replicas report about once
LATE = "late_per_s:"  # and the drafter's name: a router reports one for each


def apart(one: Placement, other: Placement) -> bool:
    """Whether no node can take both: some label must have two different values."""
    return any(other.labels.get(label, value) != value for label, value in one.labels.items())


class Policy:
    """Decides once a second for all pools together. One instance lives as long as a deployed config."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next_s = float("-inf")
        self._short_since_s: float | None = None
        self._decisions: dict[str, Decision] = {}
        self._exporter = Exporter(AUTOSCALING)
        self._changes: dict[tuple[str, str, str], int] = {}
        self._log = logging.getLogger("ray.serve")  # the controller's own

    def __call__(self, contexts: Mapping[Any, Any]) -> tuple[dict[Any, int], dict[Any, dict[str, Any]]]:
        """({deployment: replicas}, {}). A pool left out stays as it is, a call that waits for it notwithstanding."""
        mine = {id: context for id, context in contexts.items() if _kwargs(context)}
        now = self._clock()
        if now >= self._next_s or any(context.deployment_name not in self._decisions for context in mine.values()):
            self._next_s = now + _DECIDE_S
            self._decide(list(mine.values()), now)
        wanted = {}
        for id, context in mine.items():
            decision = self._decisions[context.deployment_name]
            if decision.replicas or context.current_num_replicas:
                wanted[id] = decision.replicas
        return wanted, {}

    def _decide(self, contexts: list[Any], now: float) -> None:
        pools = observe(contexts)
        short = any(pool.role == "verifier" and pool.running < pool.target for pool in pools)
        if not short:
            self._short_since_s = None
        elif self._short_since_s is None:
            self._short_since_s = now
        decisions = decide(pools, 0.0 if self._short_since_s is None else now - self._short_since_s)
        for pool in pools:
            self._tell(pool, decisions[pool.name])
        self._decisions = decisions
        self._exporter.push(self._samples())

    def _tell(self, pool: Pool, decision: Decision) -> None:
        """One line and one count for every change of mind."""
        last = self._decisions.get(pool.name)
        if decision.replicas == (last.replicas if last is not None else pool.target):
            return
        direction = "up" if decision.replicas > pool.target else "down" if decision.replicas < pool.target else "stay"
        change = (pool.name, direction, decision.signal)
        self._changes[change] = self._changes.get(change, 0) + 1
        self._log.info(
            "%s autoscaling %s: %d -> %d replicas (%d running), %s: %s",
            *(pool.name, direction, pool.target, decision.replicas, pool.running),
            *(decision.signal, decision.reason),
        )

    def _samples(self) -> Iterable[Sample]:
        for name, decision in self._decisions.items():
            yield Sample("specserve_autoscaling_replicas", decision.replicas, (name,))
        for change, count in self._changes.items():
            yield Sample("specserve_autoscaling_decisions", count, change)


def observe(contexts: Iterable[Any]) -> list[Pool]:
    """Serve's contexts of one application as pools, in the same order."""
    contexts = list(contexts)
    rounds_per_s, draft_wait = 0.0, 0.0
    late_per_s: dict[str, float] = {}
    for context in contexts:
        if _kwargs(context)["role"] == "router":
            reports = context.aggregated_metrics or {}
            rounds_per_s += sum(reports.get("rounds_per_s", {}).values())
            draft_wait = _mean(reports, "draft_wait")
            for name, values in reports.items():
                if name.startswith(LATE):
                    late_per_s[name.removeprefix(LATE)] = sum(values.values())
    pools = []
    for context in contexts:
        kwargs, reports = _kwargs(context), context.aggregated_metrics or {}
        drafts = kwargs["role"] == "drafter" and rounds_per_s > 0
        pools.append(
            Pool(
                name=context.deployment_name,
                role=kwargs["role"],
                aims=Aims(**kwargs["aims"]),
                running=context.current_num_replicas,
                target=context.target_num_replicas,
                sessions=context.total_num_requests,
                queue_s=_mean(reports, "queue_s"),
                occupancy=_mean(reports, "occupancy"),
                busy=_mean(reports, "busy"),
                late=late_per_s.get(kwargs["pool"], 0.0) / rounds_per_s if drafts else 0.0,
                wait=draft_wait if drafts else 0.0,
                grew_s=_since(context.last_scale_up_time, context.current_time),
                shrank_s=_since(context.last_scale_down_time, context.current_time),
                apart=kwargs["apart"],
            )
        )
    return pools


def _kwargs(context: Any) -> dict[str, Any]:
    """What `build_app` wrote there; empty for a deployment whose autoscaling_config was overridden."""
    kwargs: dict[str, Any] = context.config.policy.policy_kwargs
    return kwargs if "aims" in kwargs else {}


def _mean(reports: Mapping[str, Mapping[Any, float]], name: str) -> float:
    values = reports.get(name, {}).values()
    return sum(values) / len(values) if values else 0.0


def _since(then: float | None, now: float) -> float:
    return float("inf") if then is None else now - then
