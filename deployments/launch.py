"""Bring a config up on a cluster, wait until it answers, and take it down gracefully."""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import yaml
from ray import serve
from ray.serve._private import api as serve_api
from ray.serve.config import HTTPOptions, gRPCOptions
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from deployments.autoscaling import POLICY
from deployments.strict import check
from specserve.config import AppConfig, parse
from specserve.errors import ConfigError

CONFIGS = Path(__file__).parent / "configs"
_GRPC_SERVICES = ("deployments.ingress.add_generation_service", "deployments.ingress.add_health_service")


@dataclass(frozen=True, slots=True)
class Server:
    """A running deployment."""

    name: str
    grpc: str
    http: str


def load(path: Path) -> dict[str, Any]:
    """Read and check a Serve config file, ours and Serve's own part alike.

    Raises:
        ConfigError: the file cannot be read, holds an unknown key, or breaks a bound.
    """
    try:
        config = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"config {path}: {error}") from error
    try:
        check(config)
    except ConfigError as error:
        raise ConfigError(f"config {path}: {error}") from error
    assert isinstance(config, dict)
    return config


@contextmanager
def up(config: dict[str, Any], report: Callable[[str], None] = lambda _: None) -> Iterator[Server]:
    """Deploy on the cluster of RAY_ADDRESS, or on a local one started for this; the exit drains open streams.

    Raises:
        ConfigError: the application cannot start; the message is the replica's own.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    application = config["applications"][0]
    args = parse(application["args"])
    _start_ray(args, report)
    try:
        report("starting Serve")
        client = serve_api.serve_start(
            http_options=HTTPOptions(**config.get("http_options", {})),
            grpc_options=gRPCOptions(
                **{"grpc_servicer_functions": list(_GRPC_SERVICES), **config.get("grpc_options", {})}
            ),
            proxy_location=config.get("proxy_location"),
        )
        deploy(config)
        try:
            _wait_running(application["name"], report)
            client.wait_for_proxies_serving(wait_for_applications_running=True)
            host = ray.util.get_node_ip_address()
            yield Server(
                name=application["name"],
                grpc=f"{host}:{config.get('grpc_options', {}).get('port', 9000)}",
                http=f"http://{host}:{config.get('http_options', {}).get('port', 8000)}",
            )
        finally:
            report("draining open streams")
            _drain(application["name"], args, report)
            client.shutdown_cached_handles()  # one that goes on reporting would start a new Ray for it
    finally:
        ray.shutdown()


def deploy(config: dict[str, Any]) -> None:
    """Hand a config to the Serve that is up; a changed one replaces the replicas, and open streams finish on the old.

    Returns at once. Pools scale by our policy unless the config names another.
    """
    application = {"autoscaling_policy": {"policy_function": POLICY}, **config["applications"][0]}
    schema = ServeDeploySchema.model_validate({**config, "applications": [application]})
    _get_global_client().deploy_apps(schema)


def _start_ray(args: AppConfig, report: Callable[[str], None]) -> None:
    # Streamed chunks pass the proxy by value: a fifth of the CPU per chunk.
    os.environ.setdefault("RAY_SERVE_PROXY_USE_GRPC", "1")
    # Ray's workers run at niceness 15 otherwise: behind every other process here, those that ask them included.
    os.environ.setdefault("RAY_worker_niceness", "0")
    if os.environ.get("RAY_ADDRESS"):
        report(f"joining the cluster at {os.environ['RAY_ADDRESS']}")
        ray.init(log_to_driver=False, logging_level="error")
        return
    report("starting a local Ray")
    # Ray's CPUs are counts for placement; a small machine still runs every part, sharing its cores.
    wanted = sum(part.replicas.max * part.placement.num_cpus for part in args.parts)
    ray.init(
        address="local",
        num_cpus=max(os.cpu_count() or 1, int(wanted) + 1),
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        object_store_memory=128 << 20,
    )


def _drain(name: str, args: AppConfig, report: Callable[[str], None]) -> None:
    """Take the application down; open streams finish, within the longest grace period configured."""
    grace_s = max(part.graceful_shutdown_s for part in args.parts)
    deadline = time.monotonic() + grace_s + 5
    serve.delete(name, _blocking=False)
    while name in serve.status().applications:
        if time.monotonic() > deadline:
            report(f"not drained within {grace_s:g} s: stopping what is left")
            return
        time.sleep(0.1)


def _wait_running(name: str, report: Callable[[str], None]) -> None:
    last = ""
    while True:
        status = serve.status().applications[name]
        state = status.status.value
        if state == "RUNNING":
            return
        if state in ("DEPLOY_FAILED", "UNHEALTHY"):
            details = [d.message for d in status.deployments.values() if d.message]
            raise ConfigError("\n".join([status.message, *details]))
        ready = [n for n, d in status.deployments.items() if d.status.value == "HEALTHY"]
        line = f"deploying: {len(ready)} of {len(status.deployments)} parts ready"
        if status.deployments and line != last:
            report(last := line)
        time.sleep(0.1)
