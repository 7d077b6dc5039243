"""The n-gram bench: rounds that count what a router would, and figures that fit together."""

import json

import numpy as np
import pytest

from specserve.bench import ngram as bench
from specserve.bench import ngram_report
from specserve.bench.ngram_play import Known, Text, play
from specserve.bench.ngram_texts import edits, referred
from specserve.draft.ngram import NgramDrafter
from specserve.draft.ngram.table import Table
from specserve.types import Draft, Sampling, merge

LOOP = tuple(range(5, 12)) * 30


def flat(tokens):
    return 1.0


def texts(*outputs, prompt=(1, 2, 3)):
    return [Text(prompt, output, Sampling()) for output in outputs]


def table(vocab=16):
    successors = np.stack([(np.arange(vocab) + 1) % vocab, np.arange(vocab)], 1).astype(np.int32)
    return Table("f", np.arange(4, dtype=np.int32), successors, np.full((vocab, 2), 200, np.uint8))


def test_a_verdict_follows_the_known_text_through_the_tree():
    judge = Known(flat)
    judge.open(Text((1,), (2, 3, 4, 5), Sampling()))
    draft = merge([Draft.chain((9, 9)), Draft.chain((3, 9)), Draft.chain((3, 4, 5))])
    verdict, seconds = judge.verify([1, 2], draft)
    assert [draft.tokens[node] for node in verdict.accepted] == [3, 4], "the last token is the target's own"
    assert verdict.token == 5
    assert seconds == 1.0


def test_plain_decoding_takes_a_call_a_token_and_a_loop_few():
    off = play(texts(LOOP), None, Known(flat), tuned=False)
    assert (off.calls, off.emitted, off.tokens_per_call) == (len(LOOP) - 1, len(LOOP) - 1, 1.0)
    whole = play(texts(LOOP), NgramDrafter(rows=1, tune=False, max_tokens=10), Known(flat), tuned=False)
    assert whole.emitted == off.emitted
    assert whole.tokens_per_call > 5
    assert play(texts(LOOP), NgramDrafter(), Known(flat), tuned=True).tokens_per_call > 3


def test_rounds_are_counted_by_the_row_that_was_taken_and_its_depth():
    tally = play(texts(LOOP), NgramDrafter(rows=1, tune=False, max_tokens=3), Known(flat), tuned=False)
    (only,) = tally.taken
    assert only[2] == max(only)
    assert sum(only) <= tally.calls


def test_edits_repeat_the_prompt_and_a_reference_hides_it_from_the_target():
    (edited,) = edits(texts(LOOP, prompt=LOOP), every=10)
    same = sum(a == b for a, b in zip(edited.output, LOOP[-256:], strict=False))
    assert 0.7 < same / len(edited.output) < 1
    (hidden,) = referred([edited])
    assert (hidden.prompt, hidden.reference) == (LOOP[:1], LOOP)
    assert play([hidden], NgramDrafter(), Known(flat), tuned=True).tokens_per_call > 2


def test_figures_become_tables(monkeypatch):
    monkeypatch.setattr(bench, "ROWS", (1, 2))
    monkeypatch.setattr(bench, "WIDTHS", (1, 3))
    known, played = Known(lambda tokens: 1 + 0.01 * tokens), texts(LOOP, LOOP[::-1])
    cells = bench.grid(played, table(), known, print)
    assert [(cell["k"], cell["w"]) for cell in cells] == [(1, 1), (1, 3), (2, 1), (2, 3)]
    assert cells[1]["tokens_per_call"] > cells[0]["tokens_per_call"] > 1
    arms = bench.arms(played, table(), known, print)
    assert arms["mix"]["by_strategy"].keys() >= {"context"}
    walls = bench.walls(played, table(), known, cells, print)
    assert list(walls)[:4] == ["off", "prompt lookup", "context + bigram", "mix"]
    results = {
        "sets": {"loops": {"arms": arms, "grid": cells}, "edits": {"arms": arms, "wall": walls}},
        "verify_ms": {"1": 10.0, "2": 10.5},
        "latency": bench.latency(table(512), sessions=2, rows=3, width=4, context=50),
    }
    text = ngram_report.markdown(json.loads(json.dumps(results)))
    assert "| mix |" in text
    assert "2 sessions, 50 tokens" in text


def test_a_grid_is_drawn(tmp_path):
    pytest.importorskip("matplotlib", reason="the bench extra installs matplotlib")
    cells = [
        {"k": k, "w": w, "tokens_per_call": 1.0 + k * w / 8, "speed_up": 2.0 - k / w} for k in (1, 2) for w in (1, 3)
    ]
    ngram_report.heat_map({"sets": {"loops": {"grid": cells}, "edits": {}}}, tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes()[:4] == b"\x89PNG"
