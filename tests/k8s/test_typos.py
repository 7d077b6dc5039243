"""A typo in a manifest or in a serve config is caught before anything is applied."""

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from manifests import of_kind, problems

pytest.importorskip("kubernetes_validate", reason="the test extra installs kubernetes-validate")

Manifests = list[dict[str, Any]]


def put(kind: str, path: str, value: Any, name: str | None = None) -> Callable[[Manifests], None]:
    """Set a value of the first manifest of a kind, or of the one with that name."""

    def change(manifests: Manifests) -> None:
        at: Any = next(m for m in of_kind(manifests, kind) if name in (None, m["metadata"]["name"]))
        _put(at, path, value)

    return change


def rename(kind: str, path: str, name: str) -> Callable[[Manifests], None]:
    """Misspell a key."""

    def change(manifests: Manifests) -> None:
        at: Any = of_kind(manifests, kind)[0]
        *way, last = path.split("/")
        for step in way:
            at = at[int(step) if isinstance(at, list) else step]
        at[name] = at.pop(last)

    return change


def serve(path: str, value: Any) -> Callable[[Manifests], None]:
    """Set a value of the Serve config."""

    def change(manifests: Manifests) -> None:
        spec = of_kind(manifests, "RayService")[0]["spec"]
        config = yaml.safe_load(spec["serveConfigV2"])
        _put(config, path, value)
        spec["serveConfigV2"] = yaml.safe_dump(config)

    return change


def _put(at: Any, path: str, value: Any) -> None:
    *way, last = path.split("/")
    for step in way:
        at = at[int(step)] if isinstance(at, list) else at.setdefault(step, {})
    at[int(last) if isinstance(at, list) else last] = value


CLUSTER = "spec/rayClusterConfig"
GROUP = f"{CLUSTER}/workerGroupSpecs/1"
ARGS = "applications/0/args"

TYPOS: dict[str, tuple[Callable[[Manifests], None], str]] = {
    # misspelt key, at every level
    "key of the spec": (rename("RayService", CLUSTER, "rayClusterSpec"), "rayClusterSpec"),
    "key of a group": (rename("RayService", f"{GROUP}/maxReplicas", "maxReplica"), "maxReplica"),
    "key of a container": (
        rename("RayService", f"{GROUP}/template/spec/containers/0/resources", "resource"),
        "'resource' was unexpected",
    ),
    "key of metadata": (rename("RayService", "metadata/namespace", "nameSpace"), "nameSpace"),
    "key of a core kind": (rename("PodDisruptionBudget", "spec/minAvailable", "minAvaliable"), "minAvaliable"),
    "key of a route": (rename("GRPCRoute", "spec/rules/0/backendRefs", "backendRef"), "backendRef"),
    # wrong type
    "word for a number": (put("RayService", f"{GROUP}/maxReplicas", "four"), "'four' is not of type 'integer'"),
    "number for a word": (put("RayService", f"{CLUSTER}/headGroupSpec/rayStartParams/num-cpus", 0), "0 is not of type"),
    "word for a port": (put("Service", "spec/ports/0/port", "http"), "port"),
    # wrong enum
    "autoscaler version": (put("RayService", f"{CLUSTER}/autoscalerOptions/version", "v3"), "'v3' is not one of"),
    "upgrade strategy": (put("RayService", "spec/upgradeStrategy/type", "Rolling"), "must be NewCluster or None"),
    "policy type": (put("NetworkPolicy", "spec/policyTypes", "Ingress"), "policyTypes"),
    # wrong port name
    "port of a container": (
        put("RayService", f"{GROUP}/template/spec/containers/0/ports/2/name", "grpc-serve"),
        "must have the ports",
    ),
    "port of the service": (put("Service", "spec/ports/1/targetPort", "serve-grcp", "specserve"), "'serve-grcp'"),
    "port of the monitor": (put("PodMonitor", "spec/podMetricsEndpoints/0/port", "metric"), "'metric'"),
    "port of the route": (put("GRPCRoute", "spec/rules/0/backendRefs/0/port", 9001), "port 9001"),
    # wrong apiVersion
    "apiVersion of ours": (put("RayService", "apiVersion", "ray.io/v1alpha1"), "no known kind"),
    "apiVersion of a core kind": (put("PodDisruptionBudget", "apiVersion", "policy/v1beta1"), "no known kind"),
    "apiVersion of a route": (put("GRPCRoute", "apiVersion", "gateway.networking.k8s.io/v1alpha2"), "no known kind"),
    # a name that leads nowhere
    "selector": (put("PodDisruptionBudget", "spec/selector/matchLabels/ingress", "x"), "selects no pod"),
    "service of the route": (put("GRPCRoute", "spec/rules/0/backendRefs/0/name", "specserv"), "no Service specserv"),
    "label of a group": (put("RayService", f"{GROUP}/labels", {"specserve.dev/role": "verfier"}), "no worker group"),
    "variable of the secret": (serve(f"{ARGS}/data_plane/secret_env", "SPECSERVE_SECRET"), "from a Secret"),
    # too small to hold what the config asks for
    "bound of a group": (put("RayService", f"{GROUP}/maxReplicas", 1), "must hold"),
    # the serve config: misspelt key, at every level
    "serve key": (serve("grpc_option", {}), "did you mean 'grpc_options'"),
    "serve key of options": (serve("grpc_options/prot", 9000), "did you mean 'port'"),
    "serve key of an application": (serve("applications/0/route_prefx", "/"), "did you mean 'route_prefix'"),
    "serve key of a policy": (serve("applications/0/autoscaling_policy/policy_fn", "x"), "did you mean"),
    "serve key of logging": (serve("applications/0/logging_config", {"encodng": "JSON"}), "did you mean 'encoding'"),
    "serve key of an override": (
        serve("applications/0/deployments", [{"name": "Router", "ray_actor_options": {"num_cpu": 1}}]),
        "did you mean 'num_cpus'",
    ),
    "serve key of an override's scaling": (
        serve("applications/0/deployments", [{"name": "Router", "autoscaling_config": {"max_replica": 3}}]),
        "did you mean 'max_replicas'",
    ),
    "our key": (serve(f"{ARGS}/target/slotz", 1), "did you mean 'slots'"),
    "our key, deeper": (serve(f"{ARGS}/drafters/ar/replicas/mx", 1), "did you mean 'max'"),
    # the serve config: everything else
    "unknown drafter kind": (serve(f"{ARGS}/drafters/ar/kind", "eagle"), "drafters.ar.*eagle"),
    "negative replicas": (serve(f"{ARGS}/target/replicas/min", -1), "target.replicas.min.*-1"),
    "min above max": (serve(f"{ARGS}/target/replicas/min", 9), "must be at most replicas.max"),
    "proxy location": (serve("proxy_location", "EveryNod"), "proxy_location.*EveryNod"),
    "word for the serve port": (serve("grpc_options/port", "grpc"), "grpc_options.port.*grpc"),
    "dtype": (serve(f"{ARGS}/target/dtype", "bf16"), "target.dtype.*bf16"),
    "import path": (serve("applications/0/import_path", "deployments.app:build_ap"), "must name something to import"),
    "stub": (
        serve("grpc_options/grpc_servicer_functions/0", "deployments.ingres.add"),
        "must name something to import",
    ),
    "policy": (
        serve("applications/0/autoscaling_policy/policy_function", "deployments.autoscaling:Polcy"),
        "must name something to import",
    ),
    "override of nothing": (serve("applications/0/deployments", [{"name": "Verifer"}]), "name must be one of"),
    "scaling of an override": (
        serve("applications/0/deployments", [{"name": "Router", "autoscaling_config": {"min_replicas": -1}}]),
        "min_replicas.*-1",
    ),
}


# Only KubeRay's schema of a RayService knows these.
BY_THE_CRD = {
    "key of the spec",
    "key of a group",
    "key of a container",
    "word for a number",
    "number for a word",
    "autoscaler version",
}


@pytest.mark.parametrize("typo", TYPOS)
def test_a_typo_is_caught_and_named(
    typo: str, overlay: Callable[[str], Manifests], request: pytest.FixtureRequest
) -> None:
    if typo in BY_THE_CRD:
        request.getfixturevalue("crd")
    manifests = copy.deepcopy(overlay("gpu"))
    change, complaint = TYPOS[typo]
    change(manifests)
    found = "\n".join(problems(manifests))
    assert found, "not caught"
    assert re.search(complaint, found), found
