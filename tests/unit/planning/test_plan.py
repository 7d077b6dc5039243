"""`specserve plan`, from figures to pictures."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from specserve.cli.plan import command
from specserve.errors import ConfigError
from specserve.planning import measured
from specserve.planning.figures import Figures
from specserve.planning.plan import PLAIN, plan

ROOT = Path(__file__).parents[3]


def test_a_plan_counts_replicas_and_prices_for_the_peak(figures: Callable[..., Figures]) -> None:
    priced = figures(
        {"price": 1.0, "max_sessions": 8},
        [{"seconds": 5, "clients": 3}, {"seconds": 5, "clients": 10}],
        target={"max_sessions": 2, "price": 3.0, "gpus": 2},
        traffic={"output_tokens": 9},
    )
    result = plan(priced, trace=False)
    assert result["simulated"] is True
    assert result["best"] == "small"
    way, plain = result["ways"]["small"], result["ways"][PLAIN]
    assert plain["replicas"]["verifier"] == 5
    assert plain["gpus"] == 10
    # Two sessions of a verifier: 2 tokens in 11 ms, for two GPUs of 3 an hour.
    assert plain["tokens_per_s_per_gpu"] == pytest.approx(1 / 11e-3, rel=0.05)
    assert plain["price_per_million_tokens"] == pytest.approx(6 * 11e-3 / 2 / 3600 * 1e6, rel=0.05)
    assert way["price_per_million_tokens"] < plain["price_per_million_tokens"]
    even = result["break_even"]["small"]
    assert 0 < even["acceptance"] < 1
    assert even["price"] > 1
    assert even["sessions_per_verifier"] is None


def test_what_a_drafter_may_cost_is_where_the_prices_meet(figures: Callable[..., Figures]) -> None:
    def at(price: float) -> dict[str, float]:
        parts = {"target": {"max_sessions": 1, "price": 3.0}, "traffic": {"output_tokens": 9}}
        result = plan(figures({"price": price}, [{"seconds": 1, "clients": 4}], **parts), trace=False)
        even: dict[str, float] = result["break_even"]["small"]
        return {
            **even,
            "mine": result["ways"]["small"]["price_per_million_tokens"],
            "plain": result["ways"][PLAIN]["price_per_million_tokens"],
        }

    dearest = at(1.0)["price"]
    there = at(dearest)
    assert there["mine"] == pytest.approx(there["plain"], rel=0.01)


def test_costs_are_found_again_in_what_a_bench_shows() -> None:
    def point(batch: float, depth: float) -> measured.Point:
        wait = 2 + depth * (0.5 + 0.1 * batch)
        return measured.Point(20 + 1.5 * (batch - 1) + 0.4 * batch * depth, batch, depth, wait)

    points = [point(batch, depth) for batch in (1, 4, 16) for depth in (0, 3, 6)]
    assert measured.fit_pass(points) == pytest.approx({"step_ms": 20, "session_ms": 1.5, "token_ms": 0.4})
    assert measured.fit_draft(points, 2) == pytest.approx({"step_ms": 0.5, "token_ms": 0.1})


def test_no_cost_is_below_zero() -> None:
    points = [measured.Point(20 - batch, batch, depth, 0) for batch in (1, 4, 8) for depth in (0, 2)]
    assert min(measured.fit_pass(points).values()) == 0


def test_a_file_that_is_no_bench_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    path.write_text('{"levels": {"1": {}}}')
    with pytest.raises(ConfigError, match="specserve bench CONFIG"):
        measured.read(path)
    with pytest.raises(ConfigError, match="drafter must be one of the arms ngram, ar"):
        measured.read(ROOT / "results" / "humaneval-138m.json", "nobody")


def test_the_command_plans_from_a_bench_and_writes_pictures_and_a_page(tmp_path: Path) -> None:
    figures = tmp_path / "figures.yaml"
    given = {
        "target": {"max_sessions": 2},
        "drafters": {"ar": {"gpus": 0.1}},
        "traffic": {"phases": [{"seconds": 2, "clients": 2}, {"seconds": 2, "clients": 8}], "output_tokens": 8},
        "goals": {"ms_per_token": 500},
    }
    figures.write_text(yaml.safe_dump(given))
    options = ["--bench", ROOT / "results" / "humaneval-138m.json", "--drafter", "ar"]
    options += ["--out", tmp_path / "out", "--json", tmp_path / "plan.json"]
    done = CliRunner().invoke(command, [str(figures), *map(str, options)])
    assert done.exit_code == 0, done.output
    assert "Simulated: at the peak of the traffic" in done.output
    assert "breaks even, per total GPU" in done.output
    result = json.loads((tmp_path / "plan.json").read_text(), parse_constant=pytest.fail)  # no NaN: any parser reads it
    assert result["traces"]["ar"]["most_replicas"]["verifier"] <= 6
    page = (tmp_path / "out" / "plan.html").read_text()
    assert "<strong>simulated</strong>" in page
    assert page.count("data:image/png;base64,") == 2
    for picture in ("curves.png", "traffic.png"):
        assert (tmp_path / "out" / picture).read_bytes().startswith(b"\x89PNG")
