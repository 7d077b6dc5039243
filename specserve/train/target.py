"""Recipe: a small Llama-shaped target from scratch, so that everything runs without a download."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from specserve.train import loop
from specserve.train.artefact import Report, fingerprint, save_model, write_provenance
from specserve.train.corpus import load
from specserve.train.progress import shown
from specserve.train.shape import Shape
from specserve.train.tokenizer import END_ID, save_tokenizer, train_tokenizer
from specserve.train.tokens import Ids, batch, pack

# 8.5M parameters. Shallow and wide: on 2 cores this trains 1.5x as fast as 6 layers of 320, 8.9M parameters.
SHAPE = Shape(vocab=4096, hidden=384, layers=4, ffn=1152, heads=6, kv_heads=2, head_dim=64)


def train_target(
    out: Path,
    *,
    corpus: Sequence[Path] = (),
    library: bool = True,
    seed: int = 0,
    tokens: int = 14_000_000,
    minutes: float | None = None,
    shape: Shape = SHAPE,
    batch_size: int = 4,
    length: int = 1024,
    peak_lr: float = 2e-3,
    workdir: Path | None = None,
    resume: bool = True,
    device: str = "auto",
    report: loop.Reporter | None = None,
) -> Report:
    """Train a target on the standard library (and `corpus`), and write it to `out` as a Hugging Face directory.

    Args:
        out: gets config, bf16 weights, tokenizer and `provenance.json`.
        corpus, library: the text, see `specserve.train.corpus.load`.
        tokens: how many tokens to train on; about 2.7M are one pass over the standard library.
        minutes: ends earlier when this much training time is used up (the schedule is fitted to it).
        batch_size, length: windows per step, and tokens per window.
        workdir: where checkpoints live, `runs/target` if not given.
        report: called after every step; by default progress is shown on stderr.
    """
    texts = load(corpus, library=library)
    tokenizer = train_tokenizer((d.text for d in texts.train), vocab_size=shape.vocab)
    ids = pack((d.text for d in texts.train), tokenizer, end=END_ID)
    held_out = pack((d.text for d in texts.held_out), tokenizer, end=END_ID)
    held_out_bytes = sum(len(d.text.encode()) for d in texts.held_out)

    torch.manual_seed(seed)
    model = shape.model(end=END_ID).to(loop.device_for(device))
    plan = loop.Plan(
        steps=max(1, math.ceil(tokens / (batch_size * length))),
        tokens_per_step=batch_size * length,
        peak_lr=peak_lr,
        seed=seed,
        minutes=minutes,
    )
    recipe = {"shape": asdict(shape), "plan": asdict(plan), "batch_size": batch_size, "length": length}

    def loss_at(step: int) -> Tensor:
        return next_token_loss(model, batch(ids, step, size=batch_size, length=length, seed=seed))

    with shown("target") if report is None else nullcontext(report) as tell:
        state = loop.fit(
            model,
            loss_at,
            plan,
            fingerprint=fingerprint({**recipe, "corpus": texts.sha256}),
            checkpoint=(workdir or Path("runs/target")) / "checkpoint.pt",
            resume=resume,
            evaluate=lambda: {"held_out_loss": held_out_loss(model, held_out, length=length, windows=8)},
            report=tell,
        )
    save_tokenizer(tokenizer, out, context=shape.context)
    save_model(model, out)
    loss = held_out_loss(model.float(), held_out, length=length)
    sample = held_out[:513]
    outcome = Report(
        out=out,
        parameters=sum(p.numel() for p in model.parameters()),
        steps=state.step,
        tokens=state.step * plan.tokens_per_step,
        seconds=state.seconds,
        figures={
            "loss": loss,
            "bits_per_byte": loss / math.log(2) * len(held_out) / max(1, held_out_bytes),
            "tokens": float(len(held_out)),
        },
    )
    write_provenance(
        outcome,
        model="specserve target: Llama-shaped, trained from scratch",
        recipe="specserve.train.target",
        seed=seed,
        corpus=texts.describe(),
        **recipe,
        loss_curve=loop.sampled(state.curve),
        evaluations=state.figures,
        sample={"loss": held_out_loss(model, sample, length=len(sample)), "ids": sample.tolist()},
    )
    return outcome


def next_token_loss(model: Any, rows: Tensor) -> Tensor:
    """Mean cross-entropy in nats per token; rows: [B, L + 1]."""
    rows = rows.to(model.device)
    logits = model(input_ids=rows[:, :-1], use_cache=False).logits
    return cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())


def held_out_loss(model: Any, ids: Ids, *, length: int, windows: int | None = None) -> float:
    """Mean loss in nats per token over the first `windows` windows of `length` tokens (all by default)."""
    starts = range(0, max(1, len(ids) - 1), length)[:windows]
    total = count = 0.0
    with loop.evaluating(model):
        for start in starts:
            row = torch.from_numpy(ids[start : start + length + 1].astype("int64"))[None]
            if row.shape[1] > 1:
                total += float(next_token_loss(model, row)) * (row.shape[1] - 1)
                count += row.shape[1] - 1
    return total / max(1.0, count)
