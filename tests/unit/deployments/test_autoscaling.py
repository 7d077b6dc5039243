"""The policy as Serve calls it: built contexts in, replica counts out, every change of mind logged and counted."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from deployments import autoscaling
from deployments.app import build_app
from specserve.config import Placement, parse
from specserve.serving.metrics import Sample

ARGS: dict[str, Any] = {
    "target": {"model": "zoo:target", "replicas": {"min": 1, "max": 4}, "placement": {"labels": {"role": "verifier"}}},
    "drafters": {
        "ar": {
            "kind": "ar",
            "model": "zoo:ar",
            "replicas": {"min": 0, "max": 4, "target_sessions": 32},
            "placement": {"labels": {"role": "drafter"}},
        }
    },
}


class Recorder:
    def __init__(self, table: object) -> None:
        self.samples: dict[tuple[str, tuple[str, ...]], float] = {}

    def push(self, samples: Any) -> None:
        self.samples.update({(s.metric, s.tags): s.value for s in samples})


@pytest.fixture
def configs() -> dict[str, AutoscalingConfig]:
    """As `build_app` hands them to Serve."""
    found: dict[str, AutoscalingConfig] = {}

    def walk(app: Any) -> None:
        deployment = app._bound_deployment
        found[deployment.name] = deployment._deployment_config.autoscaling_config
        for value in deployment.init_args:
            for item in value.values() if isinstance(value, dict) else [value]:
                if hasattr(item, "_bound_deployment"):
                    walk(item)

    walk(build_app(parse(ARGS)))
    return found


@pytest.fixture
def policy(monkeypatch: pytest.MonkeyPatch) -> autoscaling.Policy:
    monkeypatch.setattr(autoscaling, "Exporter", Recorder)
    ticks = iter(range(1000))
    return autoscaling.Policy(clock=lambda: 2.0 * next(ticks))


@pytest.fixture
def contexts(configs: dict[str, AutoscalingConfig]) -> Callable[..., dict[DeploymentID, AutoscalingContext]]:
    def build(
        sessions: float, reports: dict[str, dict[str, float]], running: dict[str, int]
    ) -> dict[DeploymentID, AutoscalingContext]:
        made = {}
        for name, config in configs.items():
            id, count = DeploymentID(name, "specserve"), running.get(name, 1)
            replicas = [ReplicaID(f"r{i}", id) for i in range(count)]
            made[id] = AutoscalingContext(
                deployment_id=id,
                deployment_name=name,
                app_name="specserve",
                current_num_replicas=count,
                target_num_replicas=count,
                running_replicas=replicas,
                total_num_requests=lambda: sessions,
                total_queued_requests=0.0,
                aggregated_metrics={
                    metric: dict.fromkeys(replicas, value) for metric, value in reports.get(name, {}).items()
                },
                raw_metrics=None,
                capacity_adjusted_min_replicas=config.min_replicas,
                capacity_adjusted_max_replicas=config.max_replicas,
                policy_state={},
                last_scale_up_time=None,
                last_scale_down_time=None,
                current_time=1000.0,
                config=config,
            )
        return made

    return build


def named(wanted: dict[DeploymentID, int]) -> dict[str, int]:
    return {id.name: count for id, count in wanted.items()}


def test_sessions_bring_verifiers_and_late_drafts_bring_drafters(policy, contexts) -> None:
    reports = {
        "Router": {"rounds_per_s": 100.0, "draft_wait": 0.2, "late_per_s:ar": 20.0},
        "Verifier": {"busy": 0.9, "queue_s": 0.01, "occupancy": 0.1},
        "Drafter-ar": {"busy": 0.6},
    }
    wanted, state = policy(contexts(30, reports, {"Verifier": 4, "Drafter-ar": 2}))
    assert named(wanted) == {"Router": 1, "Verifier": 4, "Drafter-ar": 4}
    assert state == {}


def test_a_pool_that_is_held_at_nothing_is_left_out(policy, contexts) -> None:
    """Serve would bring it up for any waiting call as soon as a number is returned for it."""
    wanted, _ = policy(contexts(0, {}, {"Drafter-ar": 0}))
    assert named(wanted) == {"Router": 1, "Verifier": 1}


def test_a_change_of_mind_is_logged_once_with_its_reason_and_counted(policy, contexts, caplog) -> None:
    caplog.set_level(logging.INFO, "ray.serve")
    logging.getLogger("ray.serve").addHandler(caplog.handler)
    try:
        for _ in range(3):
            policy(contexts(20, {}, {}))
    finally:
        logging.getLogger("ray.serve").removeHandler(caplog.handler)
    lines = [message for message in dict.fromkeys(caplog.messages) if message.startswith("Verifier")]
    assert lines == ["Verifier autoscaling up: 1 -> 3 replicas (1 running), sessions: 20.0 sessions, 8 a replica"]
    samples = policy._exporter.samples
    assert samples["specserve_autoscaling_replicas", ("Verifier",)] == 3
    assert samples["specserve_autoscaling_decisions", ("Verifier", "up", "sessions")] == 1


def test_between_two_looks_the_last_decision_stands(contexts, monkeypatch) -> None:
    monkeypatch.setattr(autoscaling, "Exporter", Recorder)
    now = [0.0]
    policy = autoscaling.Policy(clock=lambda: now[0])
    policy(contexts(1, {}, {}))
    now[0] = 0.5
    assert named(policy(contexts(30, {}, {}))[0])["Verifier"] == 1
    now[0] = 1.5
    assert named(policy(contexts(30, {}, {}))[0])["Verifier"] == 4


def test_a_deployment_whose_autoscaling_was_overridden_is_left_to_itself(policy, contexts) -> None:
    made = contexts(30, {}, {})
    verifier = next(id for id in made if id.name == "Verifier")
    made[verifier].config = AutoscalingConfig(min_replicas=1, max_replicas=9)
    assert set(named(policy(made)[0])) == {"Router", "Drafter-ar"}


def test_pools_are_apart_when_a_label_must_have_two_values() -> None:
    verifier = Placement(labels={"role": "verifier"})
    assert autoscaling.apart(Placement(labels={"role": "drafter"}), verifier)
    assert not autoscaling.apart(Placement(labels={"zone": "a"}), verifier)
    assert not autoscaling.apart(Placement(), verifier)


def test_a_counter_moves_by_what_its_total_has_grown(monkeypatch: pytest.MonkeyPatch) -> None:
    from deployments import metrics
    from specserve.serving.metrics import ROUTER

    moved: list[float] = []

    class Counter:
        def __init__(self, *args: object) -> None: ...

        def inc(self, value: float, tags: dict[str, str]) -> None:
            assert tags == {"outcome": "stop"}
            moved.append(value)

    monkeypatch.setattr(metrics.metrics, "Counter", Counter)
    exporter = metrics.Exporter(metric for metric in ROUTER if metric.name == "specserve_requests")
    for total in (2, 2, 5):
        exporter.push([Sample("specserve_requests", total, ("stop",))])
    assert moved == [2, 3]
