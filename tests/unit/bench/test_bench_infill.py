"""The infill bench: gaps with known answers, and counts that mean what the table says."""

import gzip
import json
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from specserve import zoo
from specserve.bench import infill as bench
from specserve.errors import ConfigError
from specserve.types import Gap

sys.path.append(str(Path(__file__).parents[1] / "infill"))
from tinyxlnet import tiny


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(str(zoo.path("target") / "tokenizer.json"))


def test_a_problem_file_becomes_gaps_of_the_true_length_that_fit_the_context(tokenizer, tmp_path):
    line = {"prompt": "def f(x):\n" * 90, "canonical_solution": "    return x\n", "suffix": "\n\nprint(f(1))\n" * 60}
    path = tmp_path / "problems.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(line).encode()))
    (problem,) = bench.problems(path, tokenizer, 128)
    before, gap, after = problem.pieces
    assert len(before) + gap.tokens + len(after) == 128
    assert tokenizer.decode(list(problem.hidden)) == "    return x\n"
    assert gap == Gap(len(problem.hidden))


def test_a_file_of_something_else_is_refused(tokenizer, tmp_path):
    path = tmp_path / "other.jsonl"
    path.write_text('{"prompt": "x"}\n')
    with pytest.raises(ConfigError, match="must hold prompt, suffix and canonical_solution"):
        bench.problems(path, tokenizer, 128)


def test_library_windows_hide_what_was_asked_for(tokenizer):
    for problem in bench.library(tokenizer, 3, 64, 0.9):
        gaps = sum(piece.tokens for piece in problem.pieces if isinstance(piece, Gap))
        assert gaps == len(problem.hidden) == round(0.9 * 64)
        assert sum(piece.tokens if isinstance(piece, Gap) else len(piece) for piece in problem.pieces) == 64


def test_every_arm_fills_every_gap_and_counts_its_passes():
    items = [bench.Problem(((1, 2), Gap(4), (0,), Gap(3)), (0, 1, 2, 0, 1, 2, 0)) for _ in range(3)]
    tallies = bench.compare(tiny(), items, bench.arms((2, 5), 2), 1.0, judge=lambda ids: 1.0)
    results = {str(arm): tally.summary() for arm, tally in tallies.items()}
    assert {row["tokens"] for row in results.values()} == {21}
    assert results["sequential"]["passes_per_token"] == 1
    assert all(row["passes"] <= row["tokens"] for row in results.values())
    same = ("passes", "accepted", "entropy_bits")
    for name in ("ASSD self, k=5, no cache", "ASSD self, k=5, batch 2"):
        assert all(results[name][key] == results["ASSD self, k=5"][key] for key in same), "the same texts"
    table = bench.markdown({"tiny": results, "conditions": {}})
    assert "| ASSD n-gram, k=2 |" in table
    assert table.count("\n|") == len(results) + 2
