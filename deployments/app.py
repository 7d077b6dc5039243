"""`build_app`: the whole application from one checked configuration."""

# Ray Serve reads the annotation of build_app at run time: no `from __future__ import annotations` here.

import secrets
from typing import Any

from ray import serve
from ray.serve import Application

from deployments.drafter import Drafter
from deployments.router import Router
from deployments.verifier import Verifier
from specserve.config import AppConfig, Placement, Scaling

_ENVIRONMENT = {
    # A forward pass frees more than glibc likes to keep, and faults it in again in the next layer: with 16 sessions
    # of 8 nodes on a 138M bf16 model that took half of the pass.
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    # Without its event engine gRPC hands a message to two threads less on its way.
    "GRPC_EXPERIMENTS": "-event_engine_client,-event_engine_listener",
}


def build_app(args: AppConfig) -> Application:
    """Router, verifier and one pool per drafter, each a deployment that scales by itself."""
    secret = args.data_plane.secret or secrets.token_urlsafe(32)
    target, router = args.target, args.router
    verifier = (
        serve.deployment(Verifier)
        .options(**_options(target.replicas, target.placement, target.max_sessions, target.graceful_shutdown_s))
        .bind(args, secret)
    )
    drafters = {
        name: serve.deployment(Drafter)
        .options(
            name=f"Drafter-{name}",
            **_options(d.replicas, d.placement, d.max_sessions, d.graceful_shutdown_s),
        )
        .bind(name, args, secret)
        for name, d in args.drafters.items()
    }
    # Admission is the router's own: Serve hands it everything that it may hold or refuse.
    streams = 2 * (router.max_sessions + router.max_waiting) + 16
    return (
        serve.deployment(Router)
        .options(**_options(router.replicas, router.placement, streams, router.graceful_shutdown_s))
        .bind(args, secret, verifier, drafters)
    )


def _options(replicas: Scaling, placement: Placement, max_ongoing: int, graceful_s: float) -> dict[str, Any]:
    actor: dict[str, Any] = {
        "num_cpus": placement.num_cpus,
        "num_gpus": placement.num_gpus,
        "runtime_env": {"env_vars": _ENVIRONMENT},
    }
    if placement.accelerator_type is not None:
        actor["accelerator_type"] = placement.accelerator_type
    if placement.labels:
        actor["label_selector"] = dict(placement.labels)
    if placement.resources:
        actor["resources"] = dict(placement.resources)
    options: dict[str, Any] = {
        "ray_actor_options": actor,
        "max_ongoing_requests": max_ongoing,
        "graceful_shutdown_timeout_s": graceful_s,
        "health_check_period_s": 5,
    }
    if replicas.min == replicas.max:
        options["num_replicas"] = replicas.min
    else:
        options["autoscaling_config"] = {
            "min_replicas": replicas.min,
            "max_replicas": replicas.max,
            "target_ongoing_requests": min(replicas.target_sessions, max_ongoing),
            "upscale_delay_s": replicas.upscale_delay_s,
            "downscale_delay_s": replicas.downscale_delay_s,
        }
    return options
