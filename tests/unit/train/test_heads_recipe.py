from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_recipes import small_heads

from specserve.draft.heads.model import load_heads
from specserve.engine.hidden import reading
from specserve.train.artefact import Report
from specserve.train.hidden import hidden_states
from specserve.train.loop import Progress
from specserve.train.regenerate import Written
from specserve.train.teacher import Teacher


def weights(report: Report) -> dict[str, torch.Tensor]:
    return load_file(report.out / "model.safetensors")


def test_interrupted_heads_resume_to_the_same_weights(corpus: Path, target: Report, tmp_path: Path):
    def stop(progress: Progress) -> None:
        if progress.step == 2 and progress.loss is not None:
            raise KeyboardInterrupt

    whole = small_heads(target.out, tmp_path / "whole", corpus)
    with pytest.raises(KeyboardInterrupt):
        small_heads(target.out, tmp_path / "parts", corpus, report=stop)
    resumed = small_heads(target.out, tmp_path / "parts", corpus)
    torch.testing.assert_close(weights(resumed), weights(whole), rtol=0, atol=0)
    heads = load_heads(whole.out)
    assert (heads.shape.tokens, heads.shape.rank, heads.shape.columns) == (3, 2, 40)
    assert heads.ids.tolist() == sorted(set(heads.ids.tolist()))
    figures = whole.figures
    assert {"greedy_2", "greedy_3", "overlap_2", "overlap_3", "greedy_length", "overlap_length"} == figures.keys()
    assert all(0 <= figures[name] <= 1 for name in figures if not name.endswith("length"))
    assert 1 <= figures["overlap_length"] <= 3


def test_terms_of_the_mixture_start_apart_and_stay_apart(corpus: Path, target: Report, tmp_path: Path):
    """Equal terms would get equal gradients for ever."""
    heads = load_heads(small_heads(target.out, tmp_path, corpus).out)
    states = heads.states(torch.randn(1, heads.shape.width))
    assert (states[:, 0] - states[:, 1]).abs().amax(-1).min() > 0.01


def test_cached_states_are_what_the_unembedding_reads(target: Report, tmp_path: Path):
    teacher = Teacher.load(target.out, "cpu")
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 300, (70, 12), generator=generator).numpy().astype("uint32")
    lengths = torch.randint(6, 13, (70,), generator=generator).numpy()
    written = Written(ids, lengths // 2, lengths)
    read = hidden_states(teacher, written, tmp_path, lambda progress: None)
    assert len(read) == int((lengths - 1).sum())
    chosen = torch.arange(len(read)).numpy()
    hidden, after = read.at(chosen, 3)
    with torch.inference_mode(), reading(teacher.model) as seen:
        teacher.model(input_ids=torch.from_numpy(ids.astype("int64")))
    want = [(r, t) for r in range(70) for t in range(lengths[r] - 1)]
    for (row, place), state, tokens in zip(want, hidden, after, strict=True):
        torch.testing.assert_close(state, seen[0][row, place].bfloat16(), rtol=2e-2, atol=2e-2)
        padded = [*ids[row, place + 1 : lengths[row]].tolist(), -1, -1, -1]
        assert tokens.tolist() == padded[:3]
    first, before, tokens = read.spoken(2, 1)
    assert first.shape[0] == before.shape[0] == tokens.shape[0] == int((lengths - 1 - lengths // 2).clip(0).sum())
    assert torch.equal(first, before[:, 0])
