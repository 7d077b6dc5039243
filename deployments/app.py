"""`build_app`: the whole application from one checked configuration."""

# Ray Serve reads the annotation of build_app at run time: no `from __future__ import annotations` here.

import secrets
from typing import Any

from ray import serve
from ray.serve import Application

from deployments.autoscaling import apart
from deployments.drafter import Drafter
from deployments.infill import Infill
from deployments.router import Router
from deployments.verifier import Verifier
from specserve.aims import aims
from specserve.config import AppConfig, DrafterConfig, InfillConfig, RouterConfig, Scaling, TargetConfig
from specserve.serving.autoscale import Role

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
    secret = args.data_plane.shared_secret() or secrets.token_urlsafe(32)
    target, router = args.target, args.router
    verifier = (
        serve.deployment(Verifier)
        .options(
            **_options(target, target.max_sessions),
            **_replicas(args, target.replicas, target.max_sessions, "verifier", "target"),
        )
        .bind(args, secret)
    )
    drafters = {
        name: serve.deployment(Drafter)
        .options(
            name=f"Drafter-{name}",
            **_options(d, d.max_sessions),
            **_replicas(args, d.replicas, d.max_sessions, "drafter", name, apart(d.placement, target.placement)),
        )
        .bind(name, args, secret)
        for name, d in args.pools.items()
    }
    infill = None
    if args.infill is not None:
        sessions = args.infill.max_sessions
        infill = (
            serve.deployment(Infill)
            .options(
                **_options(args.infill, sessions),
                **_replicas(args, args.infill.replicas, sessions, "infill", "infill"),
            )
            .bind(args, secret)
        )
    # Admission is the router's own: Serve hands it everything that it may hold or refuse.
    streams = 2 * (router.max_sessions + router.max_waiting) + 16
    return (
        serve.deployment(Router)
        .options(**_options(router, streams), **_replicas(args, router.replicas, streams, "router", "router"))
        .bind(args, secret, verifier, drafters, infill)
    )


def _options(part: TargetConfig | DrafterConfig | InfillConfig | RouterConfig, max_ongoing: int) -> dict[str, Any]:
    placement = part.placement
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
    return {
        "ray_actor_options": actor,
        "max_ongoing_requests": max_ongoing,
        "graceful_shutdown_timeout_s": part.graceful_shutdown_s,
        "health_check_period_s": 5,
    }


def _replicas(
    args: AppConfig, scaling: Scaling, max_ongoing: int, role: Role, pool: str, apart: bool = True
) -> dict[str, Any]:
    """A fixed number; or where any part scales, bounds for all of them: Serve has only such replicas report."""
    if all(part.replicas.min == part.replicas.max for part in args.parts):
        return {"num_replicas": scaling.min}
    sessions = min(scaling.target_sessions, max_ongoing)
    return {
        "autoscaling_config": {
            "min_replicas": scaling.min,
            "max_replicas": scaling.max,
            "target_ongoing_requests": sessions,
            "upscale_delay_s": scaling.upscale_delay_s,
            "downscale_delay_s": scaling.downscale_delay_s,
            "metrics_interval_s": args.autoscaling.report_interval_s,
            "look_back_period_s": args.autoscaling.window_s,
            # Serve's own policy, which follows sessions alone, takes no arguments; deployments.autoscaling.Policy, when
            # the application names it, finds here what it goes by.
            "policy": {"policy_kwargs": {"role": role, "pool": pool, "apart": apart, "aims": aims(scaling, sessions)}},
        }
    }
