"""What a configured pool is scaled for: the configuration in the words of `serving.autoscale`."""

from __future__ import annotations

from specserve.config import DrafterScaling, Scaling, VerifierScaling


def aims(scaling: Scaling, sessions: float) -> dict[str, float]:
    """The arguments of `serving.autoscale.Aims`, as JSON. `sessions`: open leases a replica aims at."""
    common = {
        "least": scaling.min,
        "most": scaling.max,
        "sessions": sessions,
        "hysteresis": scaling.hysteresis,
        "cooldown_s": scaling.cooldown_s,
    }
    if isinstance(scaling, VerifierScaling):
        return {**common, "queue_s": scaling.target_queue_ms / 1000, "occupancy": scaling.target_occupancy}
    if isinstance(scaling, DrafterScaling):
        return {**common, "busy": scaling.target_busy, "late": scaling.target_late, "wait": scaling.target_wait}
    return common
