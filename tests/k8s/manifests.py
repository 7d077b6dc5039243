"""What is wrong with a list of manifests: each by its schema, and all of them with one another."""

import gzip
import json
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from shapes import METADATA, SHAPES

from deployments.strict import check
from specserve.config import AppConfig
from specserve.errors import ConfigError

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
KUBERNETES = "1.32"
Manifest = dict[str, Any]


def crd_schema_path() -> Path | None:
    """KubeRay's schema: in $SPECSERVE_SCHEMAS, or in ../shared/schemas beside the checkout."""
    folder = Path(os.environ.get("SPECSERVE_SCHEMAS") or ROOT.parent / "shared" / "schemas")
    return next(iter(sorted(folder.glob("rayservice-v*.json.gz"))), None)


@cache
def _crd_schema() -> dict[str, Any] | None:
    path = crd_schema_path()
    if path is None:
        return None
    schema: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
    schema["properties"]["metadata"] = METADATA
    return schema


def problems(manifests: list[Manifest]) -> list[str]:
    """One line for each; empty when all is well."""
    found = []
    for manifest in manifests:
        name = f"{manifest.get('kind')}/{manifest.get('metadata', {}).get('name')}"
        found += [f"{name}: {problem}" for problem in schema_problems(manifest)]
    if not found:  # what follows takes the shapes for granted
        found = list(_together(manifests))
    return found


def schema_problems(manifest: Manifest) -> Iterator[str]:
    """By the schema of its kind alone. Without KubeRay's, a RayService passes."""
    import kubernetes_validate

    key = (manifest.get("apiVersion", ""), manifest.get("kind", ""))
    if key == ("ray.io/v1", "RayService"):
        yield from _invalid(manifest, _crd_schema() or {})
        yield from _invalid(manifest["metadata"], METADATA)
    elif key in SHAPES:
        yield from _invalid(manifest, SHAPES[key])
    else:
        try:
            kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
        except kubernetes_validate.ValidationError as error:
            yield f"{'.'.join(map(str, error.path))}: {error.message}"
        except Exception as error:  # no schema of that version and kind, or none at all
            yield f"{key[0]} {key[1]} is no known kind: {error}"


def _invalid(given: Any, schema: dict[str, Any]) -> Iterator[str]:
    for error in jsonschema.Draft202012Validator(schema).iter_errors(given):
        yield f"{'.'.join(map(str, error.absolute_path))}: {error.message}"


def of_kind(manifests: list[Manifest], *kinds: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] in kinds]


def pods(manifests: list[Manifest]) -> list[Manifest]:
    """Every pod template, Ray's and Kubernetes' own."""
    found = []
    for service in of_kind(manifests, "RayService"):
        cluster = service["spec"]["rayClusterConfig"]
        found += [group["template"] for group in (cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", ()))]
    return found + [m["spec"]["template"] for m in of_kind(manifests, "StatefulSet", "Deployment", "Job")]


def _together(manifests: list[Manifest]) -> Iterator[str]:
    for service in of_kind(manifests, "RayService"):
        yield from _ray_service(service["spec"])
    yield from _selected(manifests)
    services = {m["metadata"]["name"]: m for m in of_kind(manifests, "Service")}
    for route in of_kind(manifests, "GRPCRoute"):
        for ref in (ref for rule in route["spec"]["rules"] for ref in rule["backendRefs"]):
            ports = [p["port"] for p in services.get(ref["name"], {"spec": {"ports": ()}})["spec"]["ports"]]
            if ref["port"] not in ports:
                yield f"GRPCRoute: no Service {ref['name']} with port {ref['port']}"


def _selected(manifests: list[Manifest]) -> Iterator[str]:
    """Every selector finds a pod, every named port is one of its containers'."""
    for manifest in of_kind(manifests, "Service", "PodDisruptionBudget", "NetworkPolicy", "PodMonitor"):
        spec, name = manifest["spec"], f"{manifest['kind']}/{manifest['metadata']['name']}"
        selector = spec.get("podSelector") or spec["selector"]
        labels = selector.get("matchLabels", {}) if manifest["kind"] != "Service" else selector
        chosen = [pod for pod in pods(manifests) if labels.items() <= pod.get("metadata", {}).get("labels", {}).items()]
        if not chosen:
            yield f"{name}: selects no pod: {labels}"
            continue
        declared = [p for pod in chosen for c in pod["spec"]["containers"] for p in c.get("ports", ())]
        names, numbers = {p["name"] for p in declared}, {p["containerPort"] for p in declared}
        for port in [p.get("targetPort", p["port"]) for p in spec.get("ports", ())] if "ports" in spec else ():
            if port not in names | numbers:
                yield f"{name}: no selected pod has port {port!r}; they have {sorted(names)}"
        for endpoint in spec.get("podMetricsEndpoints", ()):
            if endpoint["port"] not in names:
                yield f"{name}: no selected pod has port {endpoint['port']!r}; they have {sorted(names)}"
        for rule in spec.get("ingress", ()):
            for port in rule.get("ports", ()):
                if port["port"] not in numbers:
                    yield f"{name}: no selected pod has port {port['port']}; they have {sorted(numbers)}"


def _ray_service(spec: dict[str, Any]) -> Iterator[str]:
    strategy = spec.get("upgradeStrategy", {}).get("type")
    if strategy not in ("NewCluster", "None"):  # the schema takes any string
        yield f"RayService: upgradeStrategy.type must be NewCluster or None; got {strategy!r}"
    try:
        config = yaml.safe_load(spec["serveConfigV2"])
        args = check(config)
    except (yaml.YAMLError, ConfigError) as error:
        yield f"RayService: serveConfigV2: {error}"
        return
    cluster = spec["rayClusterConfig"]
    groups = cluster.get("workerGroupSpecs", [])
    wanted = {"serve": config["http_options"]["port"], "serve-grpc": config["grpc_options"]["port"], "metrics": 8080}
    for group in (cluster["headGroupSpec"], *groups):
        container = group["template"]["spec"]["containers"][0]
        ports = {p["name"]: p["containerPort"] for p in container["ports"]}
        if (have := {name: ports.get(name) for name in wanted}) != wanted:
            yield f"RayService: {container['name']} must have the ports {wanted}; got {have}"
        yield from _secret(args, container)
    yield from unplaceable(args, groups)


def _secret(args: AppConfig, container: dict[str, Any]) -> Iterator[str]:
    name = args.data_plane.secret_env
    if name is None:
        yield "RayService: serveConfigV2: data_plane.secret_env must name where the secret is; got None"
    elif not any(e["name"] == name and "secretKeyRef" in e.get("valueFrom", {}) for e in container["env"]):
        yield f"RayService: {container['name']} must have {name} from a Secret"


def unplaceable(args: AppConfig, groups: list[dict[str, Any]]) -> Iterator[str]:
    """Pools of which some replica that the config may ask for would find no node."""
    need: dict[str, list[float]] = {}
    for name, part in {"target": args.target, "router": args.router, **args.drafters}.items():
        place = part.placement
        fit = [
            g
            for g in groups
            if place.labels.items() <= g.get("labels", {}).items()
            and cpus(g) >= place.num_cpus
            and gpus(g) >= place.num_gpus
        ]
        if not fit:
            yield f"RayService: no worker group has room for a replica of {name}: {place}"
        elif len(fit) == 1:
            total = need.setdefault(fit[0]["groupName"], [0.0, 0.0])
            total[0] += part.replicas.max * place.num_cpus
            total[1] += part.replicas.max * place.num_gpus
    for group in groups:
        most = group["maxReplicas"]
        cpu, gpu = need.get(group["groupName"], (0.0, 0.0))
        if cpu > most * cpus(group) or gpu > most * gpus(group):
            name = group["groupName"]
            yield f"RayService: worker group {name} must hold {cpu:g} CPUs and {gpu:g} GPUs at its largest"


def cpus(group: dict[str, Any]) -> float:
    """As Ray counts them for a worker of the group."""
    resources = group["template"]["spec"]["containers"][0]["resources"]
    quantity = resources.get("limits", {}).get("cpu") or resources["requests"]["cpu"]
    number = re.fullmatch(r"([0-9.]+)(m?)", str(quantity))
    assert number is not None, f"cpu {quantity!r}"
    return float(number[1]) / (1000 if number[2] else 1)


def gpus(group: dict[str, Any]) -> float:
    limits = group["template"]["spec"]["containers"][0]["resources"].get("limits", {})
    return float(limits.get("nvidia.com/gpu", 0))
