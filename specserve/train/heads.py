"""Recipe: multi-token heads for any target that Hugging Face can load; the target stays frozen.   (2410.17765)

They learn from what the target itself writes. Its hidden states are computed once and kept on disk, so several ranks
cost one pass of the target over the texts.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from specserve.draft.heads.law import mixture, posterior
from specserve.draft.heads.loss import heads_loss
from specserve.draft.heads.model import Heads, Shape
from specserve.engine.hidden import unembedding
from specserve.train import loop
from specserve.train.artefact import Report, fingerprint, write_provenance
from specserve.train.corpus import load
from specserve.train.hidden import Hidden, hidden_states
from specserve.train.progress import shown
from specserve.train.regenerate import Written
from specserve.train.teacher import Teacher, have_written
from specserve.train.tokens import shuffled

_EVERY = 7  # held-out positions: one in so many is looked at


def train_heads(
    target: Path,
    out: Path,
    *,
    corpus: Sequence[Path] = (),
    library: bool = True,
    seed: int = 0,
    tokens: int = 1_000_000,
    minutes: float | None = None,
    rank: int = 1,
    predict: int = 8,
    low_rank: int | None = 64,
    vocabulary: int | None = None,
    rows: int = 2048,
    prompt: int = 256,
    new: int = 256,
    batch_size: int = 1024,
    peak_lr: float = 2e-3,
    balance: float = 1e-2,
    workdir: Path | None = None,
    resume: bool = True,
    device: str = "auto",
    report: loop.Reporter | None = None,
) -> Report:
    """Train heads on the model in `target`, and write them to `out`.

    Args:
        target: a directory with a causal LM and its `tokenizer.json`.
        corpus, library: the text, see `specserve.train.corpus.load`.
        tokens: at how many positions of the texts to learn, repetitions counted.
        minutes: ends earlier when this much training time is used up (the target's work not counted).
        rank: terms of the mixture, r; 1 is independent heads.
        predict: how many tokens the law is about, n.
        low_rank: rank of each matrix beside the identity; 0: full matrices.
        vocabulary: draft only so many of the ids, the most frequent in the texts; unset: all.
        rows, prompt, new: how many texts the target writes, from prompts of at most `prompt` tokens, and how many
            tokens each.
        batch_size: positions per step.
        balance: weight λ of the term that keeps every term of the mixture in use.
        workdir: where texts, hidden states and checkpoints live, `runs/heads` if not given.
        report: called after every step; by default progress is shown on stderr.
    Raises:
        ConfigError: `target` has no `tokenizer.json`, or no output embeddings.
    """
    teacher = Teacher.load(target, device)
    workdir = workdir or Path("runs/heads")
    texts = load(corpus, library=library)

    def showing(title: str) -> AbstractContextManager[loop.Reporter]:
        return shown(title) if report is None else nullcontext(report)

    with showing("the target writes") as tell:
        lesson = have_written(
            teacher, texts, workdir, rows=rows, prompt=prompt, new=new, seed=seed, resume=resume, report=tell
        )
    with showing("the target reads") as tell:
        read = hidden_states(teacher, lesson.written, lesson.folder / "hidden", tell)
        checks = {
            t: hidden_states(teacher, written, lesson.folder / f"hidden-{t:g}", tell)
            for t, written in lesson.checks.items()
        }

    torch.manual_seed(seed)
    weight = unembedding(teacher.model)
    shape = Shape(weight.shape[1], weight.shape[0], predict, rank, low_rank or None, vocabulary)
    heads = Heads(shape, _frequent(lesson.written, shape)).to(weight.device)
    columns = torch.full((shape.vocab + 1,), -1, device=weight.device)  # the last one is where -1 points
    columns[heads.ids] = torch.arange(shape.columns, device=weight.device)
    rows_of = weight[heads.ids].to(torch.bfloat16 if loop.bf16_pays(weight.device) else torch.float32)
    plan = loop.Plan(
        steps=max(1, math.ceil(tokens / batch_size)),
        tokens_per_step=batch_size,
        peak_lr=peak_lr,
        seed=seed,
        minutes=minutes,
    )

    def loss_at(step: int) -> Tensor:
        hidden, after = read.at(shuffled(len(read), step, size=batch_size, seed=seed), predict)
        return heads_loss(heads, hidden.to(weight.device).float(), rows_of, columns[after.to(weight.device)], balance)

    recipe = {
        "shape": asdict(shape), "plan": asdict(plan), "batch_size": batch_size, "balance": balance,
        "written_by_target": lesson.by, "target": teacher.weights,
    }  # fmt: skip
    name = fingerprint({**recipe, "corpus": texts.sha256})
    with showing(f"heads of rank {rank}") as tell:
        state = loop.fit(
            heads,
            loss_at,
            plan,
            fingerprint=name,
            checkpoint=workdir / f"checkpoint-{name}.pt",
            resume=resume,
            evaluate=lambda: {k: v for k, v in acceptance(heads, weight, checks).items() if k.endswith("length")},
            report=tell,
        )
    heads.save(out)
    outcome = Report(
        out=out,
        parameters=sum(p.numel() for p in heads.parameters()),
        steps=state.step,
        tokens=state.step * batch_size,
        seconds=state.seconds,
        figures=acceptance(heads.to(torch.bfloat16).float().requires_grad_(False), weight, checks),
    )
    write_provenance(
        outcome,
        model=f"specserve heads: {predict} tokens, rank {rank}, on the target's last hidden state",
        recipe="specserve.train.heads",
        seed=seed,
        corpus=texts.describe(),
        **recipe,
        loss_curve=loop.sampled(state.curve),
        evaluations=state.figures,
    )
    return outcome


def acceptance(heads: Heads, weight: Tensor, checks: dict[float, Hidden]) -> dict[str, float]:
    """How far drafts would be accepted, on what the target wrote from held-out prompts at temperatures 0 and 1.

    Token 1 is the one that is emitted already: it is given, and so are all before the one in question.

    Returns:
        greedy_s: the heads' best id for token s is the text's (of temperature 0), if all before it were;
        overlap_s: Σ min(p, q) at token s (text of temperature 1);
        greedy_length, overlap_length: tokens per round that a chain would bring.
    """
    figures: dict[str, float] = {}
    for name, temperature in (("greedy", 0.0), ("overlap", 1.0)):
        spoken = [part.to(weight.device) for part in checks[temperature].spoken(heads.shape.tokens, _EVERY)]
        pieces = [[part[at : at + 256] for part in spoken] for at in range(0, len(spoken[0]), 256)]
        rates = torch.cat([_rates(heads, weight, *piece, greedy=name == "greedy") for piece in pieces])
        reached = rates.cumprod(-1)
        before = torch.cat([torch.ones_like(reached[:, :1]), reached[:, :-1]], -1)
        share = (reached.sum(0) / before.sum(0).clamp(min=1e-9)).tolist()
        figures |= {f"{name}_{s}": rate for s, rate in enumerate(share, 2)}
        figures[f"{name}_length"] = 1 + float(reached.sum(-1).mean())
    return figures


def _rates(heads: Heads, weight: Tensor, hidden: Tensor, before: Tensor, tokens: Tensor, *, greedy: bool) -> Tensor:
    """Chance that the draft of token 2, 3, ... is accepted, [N, n - 1]."""
    at = (heads.ids == tokens[..., None]).int()
    known, column = at.any(-1), at.argmax(-1)
    unembed = weight[heads.ids]
    states = heads.states(hidden.float())
    log_b, rates = heads.weights(hidden.float()), []
    for s, terms in enumerate(states):
        log_p = (terms.transpose(0, 1) @ unembed.T).log_softmax(-1)  # [N, r, m]
        if s:
            q = torch.cat([mixture(b[None], p.exp()) for b, p in zip(log_b, log_p, strict=True)])
            if greedy:
                rates.append(((q.argmax(-1) == column[:, s]) & known[:, s]).float())
            else:
                p = (before[:, s].float() @ weight.T).softmax(-1)[:, heads.ids]
                rates.append(torch.minimum(p, q).sum(-1))
        seen = log_p.gather(2, column[:, s, None, None].expand(-1, log_p.shape[1], 1))[..., 0]
        log_b = posterior(log_b, seen * known[:, s, None])
    return torch.stack(rates, -1)


def _frequent(written: Written, shape: Shape) -> Tensor | None:
    """The ids that the texts have most often, ascending; None for all."""
    if shape.reduced is None:
        return None
    counts = np.bincount(
        np.concatenate([row[:end] for row, end in zip(written.ids, written.end, strict=True)]), minlength=shape.vocab
    )
    return torch.from_numpy(np.sort(np.argsort(-counts, kind="stable")[: shape.reduced]))
