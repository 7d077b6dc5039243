"""`specserve bench rules` on a tiny pair, and its intervals."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from specserve.bench import rules, rules_report
from specserve.bench.rules_intervals import Bootstrap, interval
from specserve.cli.bench import command
from specserve.errors import ConfigError


def test_a_way_beside_itself_is_1_with_no_doubt():
    draw = Bootstrap(12)
    tokens, rounds = np.random.default_rng(0).integers(1, 90, (2, 12)).tolist()
    values = draw.ratio(tokens, rounds)
    assert interval(values / Bootstrap(12).ratio(tokens, rounds)) == {"value": 1.0, "low": 1.0, "high": 1.0}
    found = interval(values)
    assert found["value"] == pytest.approx(sum(tokens) / sum(rounds))
    assert found["low"] < found["value"] < found["high"]


def test_prompts_of_several_files_take_turns_and_long_ones_are_left_out(folders):
    encoded, left_out = rules.encode(folders.target, [["A", "BBBB", "C"], ["D"]], room=3)
    assert encoded == [(0,), (3,), (2,)]
    assert left_out == 1
    with pytest.raises(ConfigError, match="at most 3 tokens"):
        rules.encode(folders.target, [["AAAA"]], room=3)
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        rules.encode(folders.drafter, [["A"]], room=3)


def test_the_whole_table_is_measured_and_printed(folders, monkeypatch):
    monkeypatch.setattr(rules, "SHAPES", rules.SHAPES[:2])
    lines: list[str] = []
    plan = rules.Plan(max_tokens=12, samples=2, batch=3, pilot=3, turns=0)
    results = rules.run(folders.target, folders.drafter, [["ABC", "DEFG"], ["HI"]], plan, report=lines.append)
    results = json.loads(json.dumps(results))
    assert set(results["shapes"]) == {way.name for way in rules.SHAPES}
    assert len(results["ratios"]) == len(rules.RATIOS)
    assert 0 < results["optimum"]["accepted"] <= results["optimum"]["optimum"] <= 1
    kseq = results["ways"][rules.KSEQ]["nodes_per_round"]
    assert results["ways"][rules.TREE_LIKE_KSEQ]["nodes_per_round"] <= 1.2 * kseq
    assert any(line.startswith("pilot: 3 of 3") for line in lines)
    assert lines[-2].startswith("6 of 6 sessions")
    assert set(results["ways"]) == set(rules.NAMES)
    table = rules_report.markdown(results)
    for name in (*results["ways"], *results["ratios"]):
        assert f"| {name}" in table


def test_some_ways_alone_need_no_pilot(folders):
    lines: list[str] = []
    plan = rules.Plan(max_tokens=6, turns=0, only=(rules.REJECTION, rules.BLOCK))
    results = rules.run(folders.target, folders.drafter, [["ABC", "DE"]], plan, report=lines.append)
    assert set(results["ways"]) == {rules.REJECTION, rules.BLOCK}
    assert set(results["ratios"]) == {"block / rejection"}
    assert lines == ["2 of 2 sessions of each of 2 ways"]
    assert "| block / rejection, tokens/round |" in rules_report.markdown(results)


def test_the_verify_time_table_names_its_limits():
    timed = {"sessions": 8, "nodes": 8, "vocab": 32000, "threads": 2, "forward_ms": 100.0, "forward_parameters": 138e6}
    timed["rules"] = {"coupled, T=0": {"ms": 1.0, "share_of_forward": 0.01}}
    assert "| coupled, T=0 | 1.00 | 1.0% | 10% |" in rules_report._verify(timed)


def test_the_command_prints_the_table_and_writes_all_figures(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(rules, "SHAPES", rules.SHAPES[:1])
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "ABC"}\n{"prompt": "DE"}\n')
    arguments = f"rules --target {folders.target} --drafter {folders.drafter} --prompts {tmp_path / 'prompts.jsonl'}"
    options = f"--max-tokens 6 --batch 2 --turns 0 --json {tmp_path / 'out.json'}"
    done = CliRunner().invoke(command, f"{arguments} {options}".split())
    assert done.exit_code == 0, done.output
    assert "| kseq / rejection, tokens/round |" in done.output
    conditions = json.loads((tmp_path / "out.json").read_text())["conditions"]
    assert conditions["prompts"] == ["prompts.jsonl, 2"]
    assert conditions["temperature"] == 1.0
    wrong = CliRunner().invoke(command, [*arguments.split(), "--way", "blok"])
    assert wrong.exit_code == 2
    assert "coupled tree" in wrong.output
