import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_recipes import TINY, small_ar, small_target
from transformers import AutoModelForCausalLM

from specserve.errors import ConfigError
from specserve.train.ar import divergence
from specserve.train.artefact import Report, sha256_of
from specserve.train.loop import Plan, Progress, sampled
from specserve.train.progress import describe, shown
from specserve.train.tokens import batch


def stop_at(step: int):
    def report(progress: Progress) -> None:
        if progress.step == step and progress.loss is not None:
            raise KeyboardInterrupt

    return report


def weights(report: Report) -> dict[str, torch.Tensor]:
    return load_file(report.out / "model.safetensors")


def test_an_interrupted_target_resumes_to_the_same_weights(corpus: Path, target: Report, tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        small_target(tmp_path, corpus, report=stop_at(2))
    steps = []
    resumed = small_target(tmp_path, corpus, report=lambda progress: steps.append(progress.step))
    assert steps == [3]
    torch.testing.assert_close(weights(resumed), weights(target), rtol=0, atol=0)


def test_an_interrupted_drafter_resumes_to_the_same_weights(corpus: Path, target: Report, tmp_path: Path):
    whole = small_ar(target.out, tmp_path / "whole", corpus)
    with pytest.raises(KeyboardInterrupt):
        small_ar(target.out, tmp_path / "parts", corpus, report=stop_at(2))
    resumed = small_ar(target.out, tmp_path / "parts", corpus)
    torch.testing.assert_close(weights(resumed), weights(whole), rtol=0, atol=0)
    assert 0 <= resumed.figures["greedy_agreement"] <= 1
    assert 0 < resumed.figures["overlap"] <= 1


def test_a_checkpoint_of_another_recipe_is_refused(corpus: Path, tmp_path: Path):
    small_target(tmp_path, corpus)
    with pytest.raises(ConfigError, match="another recipe"):
        small_target(tmp_path, corpus, seed=1)
    small_target(tmp_path, corpus, seed=1, resume=False)


def test_a_drafter_for_a_target_without_tokenizer_is_refused(corpus: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"must hold a tokenizer\.json"):
        small_ar(tmp_path, tmp_path, corpus)


def test_the_result_is_a_model_directory_with_its_provenance(target: Report):
    model = AutoModelForCausalLM.from_pretrained(target.out)
    provenance = json.loads((target.out / "provenance.json").read_text())
    assert model.dtype == torch.bfloat16
    assert model.generation_config.eos_token_id == 0
    assert model.config.vocab_size == TINY.vocab
    assert provenance["parameters"] == target.parameters == sum(p.numel() for p in model.parameters())
    assert provenance["files"]["model.safetensors"] == sha256_of(target.out / "model.safetensors")
    assert provenance["corpus"]["sources"][0]["documents"] == 120


def test_a_minute_budget_ends_the_run(corpus: Path, tmp_path: Path):
    report = small_target(tmp_path, corpus, tokens=10**9, minutes=1e-4)
    assert report.steps < 1000


def test_the_schedule_warms_up_and_comes_down():
    plan = Plan(steps=100, tokens_per_step=1, peak_lr=1.0, warmup=0.1, floor=0.05)
    rates = [plan.lr(plan.done(step, 0.0)) for step in range(101)]
    assert rates[10] == pytest.approx(1.0)
    assert rates == sorted(rates[:11]) + sorted(rates[11:], reverse=True)
    assert rates[100] == pytest.approx(0.05)


def test_every_epoch_visits_every_window_once_under_a_new_offset():
    ids = np.arange(101, dtype=np.uint32)
    firsts = [int(batch(ids, step, size=1, length=10, seed=0)[0, 0]) for step in range(18)]
    for epoch in (firsts[:9], firsts[9:]):
        assert sorted(epoch) == list(range(min(epoch), min(epoch) + 90, 10))
    assert min(firsts[:9]) != min(firsts[9:])


def test_divergence_is_zero_only_for_the_same_law():
    p = torch.tensor([[0.0, 1.0, -1.0]])
    assert divergence(p, p + 3.0, variation=1.0).item() == pytest.approx(0, abs=1e-6)
    q = torch.tensor([[1.0, 0.0, -1.0]])
    kl = torch.nn.functional.kl_div(q.log_softmax(-1), p.softmax(-1), reduction="sum")
    tv = (p.softmax(-1) - q.softmax(-1)).clamp(min=0).sum()
    assert divergence(p, q, variation=0.5).item() == pytest.approx((kl + 0.5 * tv).item())


def test_a_long_curve_keeps_at_most_its_points():
    curve = sampled([(step, float(step)) for step in range(1, 1001)], points=200)
    assert len(curve) == 200
    assert curve[-1] == (1000, 998.0)


def test_progress_is_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]):
    told = Progress(20, 0.5, 3.25, 4700.0, 95.0, {"held_out_loss": 3.5})
    with shown("target") as report:
        report(told)
    line = "step 20   50.0%  loss 3.250  4,700 tokens/s  1:35 left  held_out_loss 3.5"
    assert describe(told) == line
    assert line in capsys.readouterr().err
