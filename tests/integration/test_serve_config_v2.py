"""The very text that the `cpu-small` overlay hands to KubeRay, deployed here: it answers, and exports its metrics."""

import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray
import yaml
from live import until

from deployments import launch
from deployments.strict import check
from specserve import Client
from specserve.serving.metrics import METRICS

OVERLAY = Path(__file__).parents[2] / "k8s/overlays/cpu-small/serve-config.yaml"


def _raylets() -> list[psutil.Process]:
    return [p for p in psutil.Process().children(recursive=True) if p.name() == "raylet"]


@pytest.fixture(scope="module")
def server() -> Iterator[launch.Server]:
    """Ends by asserting that Ray is gone."""
    config = yaml.safe_load(yaml.safe_load(OVERLAY.read_text())["spec"]["serveConfigV2"])
    for port in (config["http_options"]["port"], config["grpc_options"]["port"]):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                pytest.skip(f"port {port}, which the config names, is taken here")
    with pytest.MonkeyPatch.context() as environment:
        # In the cluster it comes from the Secret.
        environment.setenv(check(config).data_plane.secret_env or "", "of-the-tests")
        with launch.up(config) as server:
            yield server
    until(lambda: not _raylets(), "Ray gone")


def test_it_answers_a_request(server: launch.Server) -> None:
    with Client(server.grpc) as client:
        answer = client.generate("import os\n\n\ndef walk(path):\n", max_tokens=24)
    assert answer.usage.emitted_tokens == 24
    assert answer.usage.rounds < 24, "nothing was drafted"


def test_what_prometheus_sees_are_the_names_that_dashboards_are_checked_against(server: launch.Server) -> None:
    with Client(server.grpc) as client:
        client.generate("class Stack:\n", max_tokens=16)
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"

    def scrape() -> set[str]:
        with urllib.request.urlopen(url, timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return {line.split("{")[0] for line in lines if line.startswith("ray_specserve_")}

    of_a_request = {"specserve_sessions", "specserve_emitted_tokens", "specserve_first_token_seconds"}
    wanted = {series for metric in METRICS if metric.name in of_a_request for series in metric.series}
    until(lambda: wanted <= scrape(), f"{wanted} exported")
    known = {series for metric in METRICS for series in metric.series}
    assert scrape() <= known
