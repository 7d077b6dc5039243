"""The any-subset recipe: what is hidden when, and a run that resumes, fills gaps and can be gone on from."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from specserve.errors import ConfigError
from specserve.infill.decode import Decoder, fill
from specserve.infill.model import load
from specserve.infill.twostream import TwoStream
from specserve.train.anysubset import Lessons, XlnetShape, hidden_loss, rows_of, scattered, spans, train_anysubset
from specserve.train.artefact import Report
from specserve.types import Gap, InfillSpec

TINY = XlnetShape(hidden=32, layers=1, ffn=32, heads=2, context=256)
STOP = 999


def small(target: Path, out: Path, corpus: Path, **changes: Any) -> Report:
    settings = {"tokens": 3 * 64, "batch_size": 2, "length": 32, "shape": TINY, "workdir": out / "work"}
    silent = {"report": lambda progress: None, "library": False, "target": target}
    return train_anysubset(out / "model", corpus=[corpus], **(silent | settings | changes))


def test_an_interrupted_run_resumes_to_the_same_weights_and_fills_gaps(
    corpus: Path, target: Report, tmp_path: Path
) -> None:
    whole = small(target.out, tmp_path / "whole", corpus)

    def stop(progress: Any) -> None:
        if progress.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small(target.out, tmp_path / "parts", corpus, report=stop)
    resumed = small(target.out, tmp_path / "parts", corpus)
    one, other = (load_file(report.out / "model.safetensors") for report in (whole, resumed))
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    model = load(resumed.out)
    assert model.facts.stop_token_id == model.facts.vocab_size - 1
    assert model.facts.context_len == 256
    (task,) = fill(Decoder(model, seats=1), [InfillSpec(((1, 2), Gap(3), (3,), Gap(4, exact=False)))])
    assert task.filling.done
    assert set(resumed.figures) == {"loss_15_hidden", "loss_50_hidden", "loss_95_hidden", "loss_spans"}


def test_a_run_can_go_on_from_a_model_that_an_earlier_one_has_written(
    corpus: Path, target: Report, tmp_path: Path
) -> None:
    first = small(target.out, tmp_path / "first", corpus)
    second = small(target.out, tmp_path / "second", corpus, start=first.out, peak_lr=0.0)
    one, other = (load_file(report.out / "model.safetensors") for report in (first, second))
    torch.testing.assert_close(one, other)


def test_a_window_whose_gaps_would_not_fit_the_context_is_refused(corpus: Path, target: Report, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="length must leave 192 of the context's 256 tokens; got 128"):
        small(target.out, tmp_path, corpus, length=128)


def test_the_rate_of_scattered_tokens_rises_over_the_run() -> None:
    lessons = Lessons(np.arange(20_000, dtype=np.uint32), 100, 16, 256, 0, stop=STOP)

    def rate(step: int) -> float:
        found = [1 - lesson.given / 256 for lesson in lessons.at(step)[::2]]
        return sum(found) / len(found)

    assert 0.1 < rate(0) < 0.2
    assert rate(0) < rate(50) < rate(99)
    assert 0.8 < rate(99) < 1.0


@pytest.mark.parametrize("seed", range(20))
def test_both_kinds_of_lesson_are_in_lattice_order_and_keep_their_text(seed: int) -> None:
    random, text = np.random.default_rng(seed), list(range(100))
    for lesson in (scattered(text, 0.6, random), spans(text, random, STOP)):
        for group in (lesson.cells[: lesson.given], lesson.cells[lesson.given :]):
            assert group == sorted(group)
        assert 1 <= lesson.given < len(lesson.cells)
        assert [token for _, token in sorted(lesson.cells) if token != STOP] == text
        positions = [position for position, _ in lesson.cells]
        assert len(set(positions)) == len(positions)


def test_a_stop_token_is_taught_where_there_is_room_and_its_positions_stay_empty() -> None:
    random, stops, empty = np.random.default_rng(0), 0, 0
    for _ in range(50):
        lesson = spans(list(range(100)), random, STOP)
        stopped = sum(token == STOP for _, token in lesson.cells)
        left = max(position for position, _ in lesson.cells) + 1 - len(lesson.cells)
        assert stopped or not left
        assert STOP not in [token for _, token in lesson.cells[: lesson.given]]
        stops, empty = stops + stopped, empty + (left > 0)
    assert stops > 20
    assert empty > 10


def test_the_loss_is_the_mean_of_the_hidden_tokens_one_by_one() -> None:
    """Under the oracle mask: each sees the given tokens and the hidden ones before it, whatever stands behind."""
    torch.manual_seed(0)
    streams = TwoStream(XlnetShape(vocab=50, hidden=32, layers=2, ffn=32, heads=2, context=256).model().double(), 256)
    lesson = spans(list(range(40)), np.random.default_rng(3), 49)
    whole = float(hidden_loss(streams, [lesson]).detach())
    alone = []
    for n in range(lesson.given, len(lesson.cells)):
        part = type(lesson)(lesson.cells[: n + 1], lesson.given)
        rows, labels = rows_of([part], 256)
        logits = streams(rows)[0, -1]
        alone.append(float(torch.nn.functional.cross_entropy(logits, labels[0, -1]).detach()))
    assert whole == pytest.approx(sum(alone) / len(alone), rel=1e-5)
