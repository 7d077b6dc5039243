"""The simulation against what can be worked out by hand, and against its own books."""

from collections.abc import Callable
from typing import Any

import pytest

from specserve.planning.depth import Depths
from specserve.planning.figures import Figures
from specserve.planning.seen import Seen
from specserve.planning.simulation import Simulation

ONE = {"router": 1, "verifier": 1, "drafter": 1}
Make = Callable[..., Figures]


def steady(figures: Figures, clients: int, replicas: dict[str, int] = ONE, seconds: float = 10.0) -> dict[str, float]:
    simulation = Simulation(figures, next(iter(figures.drafters), None), replicas)
    simulation.clients(clients)
    simulation.run(lambda: simulation.env.now >= 2)
    simulation.total = Seen()
    return simulation.total.figures(simulation.run(lambda: simulation.env.now >= 2 + seconds))


def test_one_session_takes_the_time_of_its_passes(figures: Make) -> None:
    """41 tokens, one a pass of 10 ms and a call of 1 ms."""
    seen = steady(figures(), 1)
    assert seen["tokens_per_s"] == pytest.approx(1 / 11e-3, rel=0.01)
    assert seen["request_s_p50"] == pytest.approx(41 * 11e-3, rel=0.011)
    assert seen["ttft_ms_p50"] == pytest.approx(11, rel=0.011)


def test_a_round_is_draft_and_pass_and_calls(figures: Make) -> None:
    """1 + 10 · 4 tokens in 10 rounds: calls of 2 + 2 ms, messages of 0.5 + 0.5, a draft of 4 and a pass of 10."""
    seen = steady(figures({}, router={"call_ms": 2, "message_ms": 0.5}), 1)
    assert seen["tokens_per_s"] == pytest.approx(41 / (10 * 19e-3 + 12.5e-3), rel=0.01)
    assert seen["ms_per_token_p95"] == pytest.approx(19 / 4, rel=0.011)


def test_sessions_of_one_verifier_share_its_passes(figures: Make) -> None:
    """16 sessions in step: (15 · 0.2) ms more a pass, and not two groups that take turns."""
    seen = steady(figures(target={"session_ms": 0.2}), 16)
    assert seen["tokens_per_s"] == pytest.approx(16 / 14e-3, rel=0.03)


def test_verifiers_share_the_sessions(figures: Make) -> None:
    one = steady(figures(target={"session_ms": 2.0}), 16)
    four = steady(figures(target={"session_ms": 2.0}), 16, {**ONE, "verifier": 4})
    assert four["tokens_per_s"] > 2 * one["tokens_per_s"]


@pytest.mark.parametrize(
    ("router", "replicas"),
    [({"draft_deadline_ms": 5}, ONE), ({}, {**ONE, "drafter": 0})],
    ids=["drafts come too late", "no drafter"],
)
def test_without_drafts_it_is_plain_decoding(figures: Make, router: dict[str, Any], replicas: dict[str, int]) -> None:
    simulation = Simulation(figures({"call_ms": 50}, router=router), "small", replicas)
    simulation.clients(2)
    simulation.run(lambda: simulation.total.requests >= 4)
    assert simulation.total.figures(1)["tokens_per_round"] < 1.1
    assert (simulation.stats.drafter("drafter").late > 0) == bool(replicas["drafter"])


def test_what_cannot_be_leased_in_time_is_refused(figures: Make) -> None:
    simulation = Simulation(
        figures(target={"max_sessions": 1}, router={"lease_timeout_s": 0.5}, traffic={"output_tokens": 400}), None, ONE
    )
    simulation.clients(4)
    simulation.run(lambda: simulation.total.refused >= 3)
    assert simulation.total.requests == 0  # four seconds each
    assert len(simulation.verifiers.waiting) <= 3


def test_everything_is_given_back(figures: Make) -> None:
    simulation = Simulation(figures({}, traffic={"spread": 0.7}), "small", {**ONE, "verifier": 2})
    simulation.clients(6)
    simulation.run(lambda: simulation.total.requests >= 20)
    simulation.clients(0)
    simulation.run(lambda: simulation.open == 0)
    assert all(pool.sessions == 0 and not pool.waiting for pool in simulation.pools)
    assert all(seat.promised == 0 for seat in simulation.verifiers.seats)
    assert simulation.total.tokens > 20 * 20


def test_a_seed_fixes_everything(figures: Make) -> None:
    def run(seed: int) -> list[dict[str, float]]:
        simulation = Simulation(figures({"acceptance": [0.6]}, traffic={"spread": 1.0}), "small", ONE, seed=seed)
        simulation.clients(3)
        simulation.run(lambda: simulation.env.now >= 3)
        return simulation.timeline

    assert str(run(1)) == str(run(1)) != str(run(2))


def test_a_spike_is_followed_up_and_down_within_bounds(figures: Make) -> None:
    scaling = {"target_sessions": 4, "upscale_delay_s": 1, "downscale_delay_s": 2, "cooldown_s": 3}
    phases = [{"seconds": 5, "clients": 2}, {"seconds": 20, "clients": 16}, {"seconds": 20, "requests_per_s": 1}]
    parts: dict[str, Any] = {"autoscaling": {"report_interval_s": 0.5, "window_s": 2}}
    simulation = Simulation(
        figures(
            {"replicas": {**scaling, "max": 3}, "start_s": 2},
            phases,
            target={"replicas": {**scaling, "max": 4}, "start_s": 5},
            **parts,
        ),
        "small",
        ONE,
        scales=True,
    )
    simulation.traffic()
    simulation.run(lambda: simulation.env.now >= 45)
    verifiers = {row["at_s"]: row["verifier"] for row in simulation.timeline}
    assert verifiers[10] == 1  # decided after a second, running after five
    assert verifiers[25] == 4
    assert verifiers[45] == 1
    assert max(row["drafter"] for row in simulation.timeline) == 3
    paid = simulation.verifiers.replica_hours * 3600
    assert 45 + 3 * 15 < paid < 45 + 3 * 35


def test_the_more_sessions_the_less_is_drafted(figures: Make) -> None:
    costly = figures({"acceptance": [0.8, 0.6, 0.4], "depth": None}, target={"token_ms": 0.4, "session_ms": 0.4})
    depths = [Depths(costly.target, costly.drafters["small"], costly.router).best(n, n) for n in (1, 8, 64, 512)]
    assert depths[0] == 3
    assert depths == sorted(depths, reverse=True)
    assert depths[-1] == 0
