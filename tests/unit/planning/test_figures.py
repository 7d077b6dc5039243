"""What a plan starts from is checked, and how values are spread is counted well enough."""

import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from specserve.errors import ConfigError
from specserve.planning.figures import Figures, load
from specserve.planning.spread import Spread

PLANS = Path(__file__).parents[3] / "deployments" / "plans"


@pytest.mark.parametrize("path", sorted(PLANS.glob("*.yaml")), ids=lambda path: path.name)
def test_a_shipped_plan_is_valid_once_what_it_leaves_out_was_measured(path: Path) -> None:
    measured = {"target": {"step_ms": 1.0, "token_ms": 0.1}, "drafters": {"ar": {"step_ms": 0.1, "acceptance": [0.5]}}}
    assert load(path, measured).traffic.phases


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("target: {step_ms: -1, token_ms: 0}", "target.step_ms: Input should be greater than 0; got -1"),
        ("target: {step_ms: 1, token_ms: 0, stepms: 2}", "did you mean 'step_ms'"),
        ("traffic: {phases: [{seconds: 1}]}", "exactly one of clients and requests_per_s"),
        ("[]", "must be a mapping; got list"),
        ("{", "figures"),
    ],
)
def test_a_bad_figure_is_named_with_its_bound(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "figures.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert said in str(caught.value)


def test_what_the_file_declares_wins_over_what_was_measured(tmp_path: Path) -> None:
    path = tmp_path / "figures.yaml"
    path.write_text("target: {token_ms: 0.5}\ntraffic: {phases: [{seconds: 1, clients: 1}]}\n")
    target = load(path, {"target": {"step_ms": 7.0, "token_ms": 0.1}}).target
    assert (target.step_ms, target.token_ms) == (7.0, 0.5)


def test_survival_never_grows_with_depth(figures: Callable[..., Figures]) -> None:
    drafter = figures({"acceptance": [0.5, 0.7, 0.2]}).drafters["small"]
    assert drafter.survival == (0.5, 0.5, 0.2)


def test_quantiles_of_a_spread_are_those_of_the_values_to_one_percent() -> None:
    rng = random.Random(1)
    values = sorted(rng.lognormvariate(0, 2) for _ in range(2000))
    spread = Spread()
    for value in values:
        spread.add(value)
    for q in (0.0, 0.5, 0.95, 0.999):
        assert spread.quantile(q) == pytest.approx(values[int(q * len(values))], rel=0.011)
    assert math.isnan(Spread().quantile(0.5))
