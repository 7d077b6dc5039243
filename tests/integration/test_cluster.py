"""Several nodes: placement, spikes, nodes that go away, and a rolling deploy, on a real Ray cluster of one machine.

`pytest -s -k spike` prints how long replicas take to come and go.
"""

import copy
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from live import APP, PROMPTS, Cluster, no_ray_process, replicas, serve_config, until

from deployments import launch
from specserve.errors import SpecserveError
from specserve.types import Chunk

ROLE = "specserve.dev/role"
# A spike is followed within seconds, up and down; a node has room for one replica, a GPU node for two.
FAST: dict[str, Any] = {"upscale_delay_s": 0.2, "downscale_delay_s": 1.0, "cooldown_s": 2.0}
ARGS: dict[str, Any] = {
    "target": {
        "model": "zoo:target",
        "dtype": "float32",
        "slots": 8192,
        "threads": 1,
        "replicas": {"min": 1, "max": 2, "target_sessions": 8, "target_queue_ms": 60_000, **FAST},
        "placement": {"num_cpus": 1, "labels": {ROLE: "verifier"}},
    },
    "drafters": {
        "ngram": {
            "kind": "ngram",
            "replicas": {"min": 0, "max": 2, "target_sessions": 8, **FAST},
            "placement": {"num_cpus": 1, "labels": {ROLE: "drafter-cpu"}},
        },
        "ar": {
            "kind": "ar",
            "model": "zoo:ar",
            "dtype": "float32",
            "slots": 8192,
            "replicas": {"min": 1, "max": 2, "target_sessions": 8, "target_busy": 1.0, "target_wait": 1.0, **FAST},
            "placement": {"num_cpus": 0.25, "num_gpus": 0.5, "labels": {ROLE: "drafter-gpu"}},
        },
    },
    "router": {"placement": {"num_cpus": 1, "labels": {ROLE: "head"}}, "draft_deadline_ms": 1000},
    "data_plane": {"secret": "of-the-tests"},
    "autoscaling": {"report_interval_s": 0.5, "window_s": 2.0},
}
NODES = ["verifier", "verifier", "drafter-cpu", "drafter-cpu", "drafter-gpu"]
LONG, SHORT = 200, 12


class Nodes:
    """A Ray cluster of one process per node."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster as RayCluster

        self._cluster = RayCluster(initialize_head=True, head_node_args=self._node("head", 4))
        self.address: str = self._cluster.address
        for role in NODES:
            self.add(role)

    def add(self, role: str) -> None:
        node = self._node(role, 1)
        self._cluster.add_node(wait=False, **node, num_gpus=2 if role == "drafter-gpu" else 0)

    def _node(self, role: str, cpus: int) -> dict[str, Any]:
        return {"num_cpus": cpus, "labels": {ROLE: role}, "object_store_memory": 80 << 20, "include_dashboard": False}

    def remove(self, node_id: str) -> str:
        """End every process of a node, without warning. Its role."""
        node = next(node for node in self._cluster.worker_nodes if node.node_id == node_id)
        self._cluster.remove_node(node, allow_graceful=False)
        role: str = node._ray_params.labels[ROLE]
        return role

    def close(self) -> None:
        self._cluster.shutdown()


class Traffic:
    """Clients that ask again and again; what they got is compared with what they should have got."""

    def __init__(self, cluster: Cluster, expected: list[list[int]]) -> None:
        self._cluster, self._expected = cluster, expected
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self.answers, self.wrong = 0, list[str]()

    def start(self, clients: int) -> "Traffic":
        self._threads = [threading.Thread(target=self._ask, args=(i,)) for i in range(clients)]
        for thread in self._threads:
            thread.start()
        return self

    def _ask(self, i: int) -> None:
        at = i % len(PROMPTS)
        with self._cluster.client() as client:
            while not self._stop.is_set():
                try:
                    answer = client.generate(PROMPTS[at], max_tokens=SHORT, mode="on")
                    if list(answer.token_ids) != self._expected[at]:
                        self.wrong.append(f"altered: {answer.token_ids}")
                except SpecserveError as error:
                    self.wrong.append(repr(error))
                self.answers += 1

    def more(self, count: int) -> None:
        """Wait until `count` more answers have come."""
        target = self.answers + count
        until(lambda: self.answers >= target, f"{count} more answers")

    def __enter__(self) -> "Traffic":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        assert self.answers > 0
        assert self.wrong == []


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with pytest.MonkeyPatch.context() as environment:
        # Nodes inherit these, as they would from a pod's environment; see launch.
        environment.setenv("RAY_SERVE_PROXY_USE_GRPC", "1")
        environment.setenv("RAY_worker_niceness", "0")
        nodes = Nodes()
        environment.setenv("RAY_ADDRESS", nodes.address)
        yield nodes
        nodes.close()
    until(no_ray_process, "every Ray process gone")


@pytest.fixture(scope="module")
def spread(nodes: Nodes, free_ports: Callable[[], int]) -> Iterator[tuple[Cluster, dict[str, Any]]]:
    config = serve_config(ARGS, free_ports(), free_ports())
    with launch.up(config) as server:
        yield Cluster(server.grpc, ARGS), config


@pytest.fixture(scope="module")
def cluster(spread: tuple[Cluster, dict[str, Any]]) -> Cluster:
    return spread[0]


@pytest.fixture(autouse=True)
def nothing_left() -> None:
    """In place of the other files': pools scale here while one would look."""


@pytest.fixture(scope="module")
def expected(cluster: Cluster) -> list[list[int]]:
    with cluster.client() as client:
        return [list(client.generate(p, max_tokens=SHORT, mode="off").token_ids) for p in PROMPTS]


def running(deployment: str) -> dict[str, str]:
    """Of the running replicas of a deployment: replica id -> node id."""
    from ray.serve.context import _get_global_client

    app = _get_global_client().get_serve_details()["applications"][APP]
    parts = app["deployments"][deployment]["replicas"]
    return {r["replica_id"]: r["node_id"] for r in parts if r["state"] == "RUNNING"}


def arrivals(deployments: Iterable[str], count: int, began: float) -> dict[str, str]:
    """When each deployment had so many running replicas."""
    took: dict[str, str] = {}

    def all_there() -> bool:
        for deployment in set(deployments) - set(took):
            if len(running(deployment)) == count:
                took[deployment] = f"{time.monotonic() - began:.1f} s"
        return len(took) == len(set(deployments))

    until(all_there, f"{count} replicas of all")
    return took


def role_of(node_id: str) -> str:
    import ray

    role: str = next(node["Labels"][ROLE] for node in ray.nodes() if node["NodeID"] == node_id)
    return role


def test_a_spike_scales_both_sides_up_where_they_belong_and_down_again(
    cluster: Cluster, expected: list[list[int]]
) -> None:
    placed = {"Verifier": "verifier", "Drafter-ngram": "drafter-cpu", "Drafter-ar": "drafter-gpu"}
    with Traffic(cluster, expected).start(1) as one:
        until(lambda: len(running("Drafter-ngram")) == 1, "n-gram drafters back from nothing")
        one.more(2)
        assert len(running("Verifier")) == len(running("Drafter-ar")) == 1
        began = time.monotonic()
        with Traffic(cluster, expected).start(29):
            took = arrivals(placed, 2, began)
            for deployment, role in placed.items():
                assert {role_of(node) for node in running(deployment).values()} == {role}
        print("a second replica after:", took)
        began = time.monotonic()
        print("back to one replica after:", arrivals(placed, 1, began))
        one.more(1)
    until(lambda: not running("Drafter-ngram"), "no n-gram drafter without sessions")


def test_what_was_decided_is_exported_with_the_rest(cluster: Cluster, nodes: Nodes, expected: list[list[int]]) -> None:
    import ray

    from specserve.serving.metrics import METRICS

    def exported() -> str:
        ports = {node["MetricsExportPort"] for node in ray.nodes() if node["Alive"]}
        pages = []
        for port in ports:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as page:
                pages.append(page.read().decode())
        return "\n".join(pages)

    def missing() -> set[str]:
        text = exported()
        return {
            metric.name
            for metric in METRICS
            if f"ray_{metric.name}{'_total' if metric.kind == 'counter' else ''}" not in text
        }

    rare = {"specserve_lost_sessions", "specserve_rebuilt_sessions", "specserve_late_drafts", "specserve_lost_drafters"}
    rare |= {"specserve_worker_ahead_seconds", "specserve_worker_feature_bytes"}  # of heads, which it has none of
    rare |= {"specserve_memory_evicted_tenants"}
    with Traffic(cluster, expected).start(1):  # so that drafters are there to speak for themselves
        until(lambda: missing() <= rare, "every metric exported")
    assert 'direction="up"' in exported()


def test_a_drafter_node_that_goes_away_costs_no_request(
    cluster: Cluster, nodes: Nodes, expected: list[list[int]]
) -> None:
    with Traffic(cluster, expected).start(4) as traffic:
        until(lambda: running("Drafter-ngram"), "an n-gram drafter")
        traffic.more(4)
        gone = nodes.remove(next(iter(running("Drafter-ngram").values())))
        assert gone == "drafter-cpu"
        traffic.more(12)
        until(lambda: running("Drafter-ngram"), "a drafter on the other node")
    nodes.add(gone)


def test_a_verifier_node_that_goes_away_costs_no_request(
    cluster: Cluster, nodes: Nodes, expected: list[list[int]]
) -> None:
    with Traffic(cluster, expected).start(4) as traffic:
        traffic.more(4)
        before = running("Verifier")
        nodes.add(nodes.remove(next(iter(before.values()))))
        until(lambda: set(running("Verifier")) - set(before), "a new verifier")
        traffic.more(8)


def test_a_rolling_deploy_of_a_changed_drafter_drops_no_stream(
    spread: tuple[Cluster, dict[str, Any]], expected: list[list[int]]
) -> None:
    cluster, config = spread
    changed = copy.deepcopy(config)
    changed["applications"][0]["args"]["drafters"]["ar"]["max_draft_tokens"] = 3
    before = {deployment: set(replicas(deployment)) for deployment in ("Router", "Verifier", "Drafter-ar")}
    with cluster.client() as client, Traffic(cluster, expected).start(2) as traffic:
        text = list(client.generate(PROMPTS[0], max_tokens=LONG, ignore_eos=True).token_ids)
        stream = client.stream(PROMPTS[0], max_tokens=LONG, ignore_eos=True)
        got: list[int] = []
        for event in stream:
            if isinstance(event, Chunk):
                got += (token.id for token in event.tokens)
                if len(got) >= 10 and changed:
                    launch.deploy(changed)
                    changed = {}
        assert got == text
        until(lambda: running("Drafter-ar") and running("Verifier"), "the new replicas")
        until(lambda: all(not pids & set(replicas(d)) for d, pids in before.items()), "the old replicas gone", 90)
        traffic.more(4)
        info = client.info()
    assert {drafter.name: drafter.max_draft_tokens for drafter in info.drafters}["ar"] == 3
