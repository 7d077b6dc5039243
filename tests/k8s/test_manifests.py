"""What a cluster would get is valid, fits together, and is the config that was tested."""

import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from manifests import K8S, ROOT, cpus, gpus, of_kind, pods, problems, schema_problems

from deployments.launch import load
from specserve.config import AppConfig, parse

pytest.importorskip("kubernetes_validate", reason="the test extra installs kubernetes-validate")

OVERLAYS = ("cpu-small", "gpu", "spike")
Overlay = Callable[[str], list[dict[str, Any]]]


def _service(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    (service,) = of_kind(manifests, "RayService")
    spec: dict[str, Any] = service["spec"]
    return spec


def _args(name: str) -> AppConfig:
    return parse(load(ROOT / "deployments" / "configs" / f"{name}.yaml")["applications"][0]["args"])


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_is_valid_and_fits_together(name: str, overlay: Overlay) -> None:
    assert problems(overlay(name)) == []


@pytest.mark.parametrize("name", OVERLAYS)
def test_a_ray_service_is_what_kuberays_schema_allows(name: str, overlay: Overlay, crd: Path) -> None:
    assert [line for m in of_kind(overlay(name), "RayService") for line in schema_problems(m)] == []


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_cluster_serves_the_very_text_of_the_config(name: str, overlay: Overlay) -> None:
    assert _service(overlay(name))["serveConfigV2"] == (ROOT / "deployments/configs" / f"{name}.yaml").read_text()


def test_the_committed_patches_are_what_the_generator_writes() -> None:
    generate = runpy.run_path(str(K8S / "generate.py"))
    assert generate["OVERLAYS"] == OVERLAYS
    for name in OVERLAYS:
        text = (ROOT / "deployments/configs" / f"{name}.yaml").read_text()
        committed = (K8S / "overlays" / name / "serve-config.yaml").read_text()
        assert committed == generate["patch"](name, text), "run python k8s/generate.py"


@pytest.mark.parametrize("name", ["gpu", "spike"])
def test_a_pool_has_a_group_of_its_own_whose_pods_hold_one_replica_each(name: str, overlay: Overlay) -> None:
    args = _args(name)
    groups = {
        g["labels"]["specserve.dev/role"]: g for g in _service(overlay(name))["rayClusterConfig"]["workerGroupSpecs"]
    }
    parts = {"verifier": args.target, "router": args.router, **{f"drafter-{n}": d for n, d in args.drafters.items()}}
    assert groups.keys() == parts.keys()
    for role, part in parts.items():
        group = groups[role]
        assert part.placement.labels == {"specserve.dev/role": role}
        assert (cpus(group), gpus(group)) == (part.placement.num_cpus, part.placement.num_gpus), role
        assert (group["minReplicas"], group["maxReplicas"]) == (part.replicas.min, part.replicas.max), role


@pytest.mark.parametrize("name", OVERLAYS)
def test_a_stream_outlives_the_deletion_of_its_cluster(name: str, overlay: Overlay) -> None:
    longest = _args(name).router.request_timeout_s
    cluster = _service(overlay(name))["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        command, seconds = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert command == "sleep"
        assert longest <= int(seconds) < pod["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("name", OVERLAYS)
def test_requests_enter_through_routers_alone(name: str, overlay: Overlay) -> None:
    """A stream that entered through a verifier's node would die with it."""
    manifests = overlay(name)
    (service,) = [m for m in of_kind(manifests, "Service") if m["metadata"]["name"] == "specserve"]
    selector = service["spec"]["selector"]
    ways_in = [
        group.get("labels", {}).get("specserve.dev/role", group["groupName"])
        for group in _service(manifests)["rayClusterConfig"]["workerGroupSpecs"]
        if selector.items() <= group["template"]["metadata"]["labels"].items()
    ]
    assert ways_in == (["all"] if name == "cpu-small" else ["router"])
    protocols = {p["name"]: p["appProtocol"] for p in service["spec"]["ports"]}
    assert protocols == {"serve": "http", "serve-grpc": "kubernetes.io/h2c"}


@pytest.mark.parametrize("name", OVERLAYS)
def test_no_pod_may_do_more_than_it_must(name: str, overlay: Overlay) -> None:
    """Pod Security's `restricted`, which the namespace enforces."""
    for pod in pods(overlay(name)):
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in spec["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_image_is_pinned_and_weights_come_from_a_volume(name: str, overlay: Overlay) -> None:
    for pod in pods(overlay(name)):
        for container in pod["spec"]["containers"]:
            assert ":" in container["image"].rpartition("/")[2], container["image"]
            assert not container["image"].endswith(":latest")
    if name != "cpu-small":
        args = _args(name)
        models = [args.target.model, *(d.model for d in args.drafters.values() if d.kind == "ar")]
        assert all(model.startswith("/models/") for model in models)


def test_a_secret_is_made_from_a_file_that_is_not_committed(build: Callable, tmp_path: Path) -> None:
    """Every key that a manifest asks of the Secret is in the example."""
    shutil.copytree(K8S / "secret", tmp_path / "secret")
    shutil.copy(tmp_path / "secret/secret.env.example", tmp_path / "secret/secret.env")
    (secret,) = build(tmp_path / "secret")
    for name in OVERLAYS:
        text = yaml.safe_dump(build(K8S / "overlays" / name))
        asked = {line.split(": ")[1] for line in text.splitlines() if line.strip().startswith("key: ") and "-" in line}
        assert {"data-plane-secret", "redis-password"} <= asked
    assert secret["metadata"]["name"] == "specserve"
    assert set(secret["data"]) == {"data-plane-secret", "redis-password"}


def test_the_data_planes_certificate_is_for_the_name_that_replicas_go_by() -> None:
    from specserve.transport.dataplane import TlsFiles

    manifests = list(yaml.safe_load_all((K8S / "secret/tls.yaml").read_text()))
    assert problems(manifests) == []
    certificate = manifests[-1]["spec"]
    assert certificate["dnsNames"] == [TlsFiles.NAME]
    assert set(certificate["usages"]) == {"server auth", "client auth"}
