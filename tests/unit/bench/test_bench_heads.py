"""`specserve bench heads` on a tiny target."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from specserve.cli.bench import command
from specserve.draft.heads.model import Heads, Shape


@pytest.fixture(scope="module")
def folders_of_heads(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    made = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for rank in (1, 2):
            made.append(tmp_path_factory.mktemp("heads") / f"r{rank}")
            Heads(Shape(32, 48, 4, rank, 4)).save(made[-1])
    return made


def test_every_way_is_counted_and_ranks_are_compared(folders, folders_of_heads, tmp_path):
    file, out = tmp_path / "prompts.jsonl", tmp_path / "heads.json"
    file.write_text("\n".join(json.dumps({"prompt": text}) for text in ("ABC", "DEFGHIJ", "KL")))
    options = ["--target", str(folders.target), "--prompts", str(file), "--max-tokens", "12", "--batch", "2"]
    options += [part for folder in folders_of_heads for part in ("--heads", str(folder))]
    done = CliRunner().invoke(
        command, ["heads", *options, "--threads", "1", "--dtype", "float32", "--json", str(out)], catch_exceptions=False
    )
    assert done.exit_code == 0
    results = json.loads(out.read_text())
    for found in results["temperatures"].values():
        assert list(found) == ["off", *(f"r={r} n={n}" for r in (1, 2) for n in ("2", "4", "4, tree of 16"))]
        assert found["off"]["accepted_length"]["value"] == found["off"]["over_off"] == 1.0
        assert found["off"]["head_ms"] == 0.0
        for name in list(found)[1:]:
            one = found[name]
            assert 1.0 <= one["accepted_length"]["value"] <= one["way"]["n"]
            assert len(one["acceptance_by_position"]) <= one["way"]["n"] - 1
            assert one["head_ms"] > 0
            assert (one["over_rank_1"] is None) == (one["way"]["rank"] == 1)
    assert "| r=2 n=4, tree of 16 |" in done.output
