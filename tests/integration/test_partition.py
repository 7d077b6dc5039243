"""Two hosts, one of them cut off from the other and healed: real Ray nodes in network namespaces of this machine."""

import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
from live import APP, PROMPTS, Cluster, no_ray_process, serve_config, until

from deployments import launch
from specserve.types import Chunk

HOST = "specserve.dev/host"
NAMESPACE, LINK = "specserve-b", "specserve-a"
HERE, THERE = "10.213.7.1", "10.213.7.2"
LENGTH = 200  # tokens of a stream: the cut comes long before its end
ARGS: dict[str, Any] = {
    "target": {
        "model": "zoo:target",
        "dtype": "float32",
        "threads": 1,
        "slots": 8192,
        "replicas": {"min": 2, "max": 2},  # a host has room for one
        "placement": {"num_cpus": 1.5},
    },
    "drafters": {"ngram": {"kind": "ngram", "placement": {"num_cpus": 0.25, "labels": {HOST: "b"}}}},
    "router": {"placement": {"num_cpus": 0.25, "labels": {HOST: "a"}}, "draft_deadline_ms": 1000},
    "data_plane": {"secret": "of-the-tests"},
}
# A node that does not answer is given up after 3 s.
HEALTH = {"PERIOD": "500", "TIMEOUT": "1000", "FAILURE_THRESHOLD": "3", "INITIAL_DELAY": "1000"}


def ip(*words: str, check: bool = True) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if check and done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")


class Network:
    """This namespace is host a; host b is another, at the far end of a cable that can be pulled."""

    def __init__(self) -> None:
        if shutil.which("ip") is None:
            pytest.skip("two hosts need network namespaces, and there is no ip command (iproute2)")
        try:
            ip("netns", "add", NAMESPACE)
            ip("link", "add", LINK, "type", "veth", "peer", "name", "specserve-b", "netns", NAMESPACE)
            ip("addr", "add", f"{HERE}/24", "dev", LINK)
            ip("link", "set", LINK, "up")
            ip("-n", NAMESPACE, "addr", "add", f"{THERE}/24", "dev", "specserve-b")
            ip("-n", NAMESPACE, "link", "set", "specserve-b", "up")
            ip("-n", NAMESPACE, "link", "set", "lo", "up")
        except OSError as error:
            self.close()
            pytest.skip(f"two hosts need network namespaces, and this machine allows none: {error}")

    def cut(self) -> None:
        ip("link", "set", LINK, "down")

    def heal(self) -> None:
        ip("link", "set", LINK, "up")

    def close(self) -> None:
        ip("link", "del", LINK, check=False)
        ip("netns", "del", NAMESPACE, check=False)


class Host:
    """The Ray node of host b, kept up as a supervisor would: `start` again when it has ended."""

    def __init__(self, address: str) -> None:
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
        options = ["--num-cpus=2", f"--labels={HOST}=b", f"--object-store-memory={80 << 20}"]
        self._command = ["ip", "netns", "exec", NAMESPACE, *ray, *options]
        self._command += [f"--address={address}", f"--node-ip-address={THERE}"]
        self._process: subprocess.Popen[bytes]
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(30)


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    network = Network()
    yield network
    network.close()


@pytest.fixture(scope="module")
def hosts(network: Network, free_ports: Callable[[], int]) -> Iterator[tuple[Cluster, Host]]:
    from ray.cluster_utils import Cluster as RayCluster

    with ExitStack() as stack, pytest.MonkeyPatch.context() as environment:
        for name, value in HEALTH.items():
            environment.setenv(f"RAY_health_check_{name.lower()}{'' if name.endswith('D') else '_ms'}", value)
        common = {"num_cpus": 2, "labels": {HOST: "a"}, "object_store_memory": 80 << 20, "include_dashboard": False}
        head = RayCluster(initialize_head=True, head_node_args={**common, "node_ip_address": HERE})
        stack.callback(until, no_ray_process, "every Ray process gone")
        stack.callback(head.shutdown)
        host = Host(head.address)
        stack.callback(host.close)
        environment.setenv("RAY_ADDRESS", head.address)
        server = stack.enter_context(launch.up(serve_config(ARGS, free_ports(), free_ports())))
        yield Cluster(server.grpc, ARGS), host


@pytest.fixture(scope="module")
def cluster(hosts: tuple[Cluster, Host]) -> Cluster:
    return hosts[0]


@pytest.fixture(autouse=True)
def nothing_left() -> None:
    """In place of the other files': a host is away while one would look."""


def on_host_b(deployment: str) -> set[str]:
    """Replicas that run there."""
    from ray.serve.context import _get_global_client

    app = _get_global_client().get_serve_details()["applications"][APP]
    parts = app["deployments"][deployment]["replicas"]
    return {r["replica_id"] for r in parts if r["state"] == "RUNNING" and r["node_ip"] == THERE}


def stream_all(cluster: Cluster, mode: str, amid: Callable[[], None] = lambda: None) -> list[list[int]]:
    """The texts of all prompts, streamed at once; `amid` is called when all have begun and none has read on."""
    texts: list[list[int]] = [[] for _ in PROMPTS]
    barrier = threading.Barrier(len(PROMPTS), action=amid)

    def read(i: int) -> None:
        with cluster.client() as client:
            for event in client.stream(PROMPTS[i], max_tokens=LENGTH, mode=mode, ignore_eos=True):
                if isinstance(event, Chunk):
                    if not texts[i]:
                        barrier.wait(30)
                    texts[i] += (token.id for token in event.tokens)

    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        for done in [pool.submit(read, i) for i in range(len(PROMPTS))]:
            done.result()
    return texts


def test_a_host_that_is_cut_off_and_healed_costs_no_request(
    cluster: Cluster, hosts: tuple[Cluster, Host], network: Network
) -> None:
    host = hosts[1]
    before = {deployment: on_host_b(deployment) for deployment in ("Verifier", "Drafter-ngram")}
    assert all(before.values())
    expected = stream_all(cluster, "off")
    assert stream_all(cluster, "on", amid=network.cut) == expected  # half of them have their verifier there
    with cluster.client() as client:
        answer = client.generate(PROMPTS[0], max_tokens=LENGTH, mode="on", ignore_eos=True)
    assert list(answer.token_ids) == expected[0]
    assert answer.usage.drafted_tokens == 0  # no drafter on this side: plain decoding
    until(lambda: not on_host_b("Verifier"), "the host given up")
    network.heal()
    until(lambda: host.ended, "the node that was given up to end by itself")
    host.start()
    for deployment, old in before.items():
        until(lambda d=deployment, o=old: on_host_b(d) - o, f"a new {deployment} on the healed host")
    with cluster.client() as client:
        answer = client.generate(PROMPTS[0], max_tokens=LENGTH, mode="on", ignore_eos=True)
    assert list(answer.token_ids) == expected[0]
    assert answer.usage.drafted_tokens > 0
