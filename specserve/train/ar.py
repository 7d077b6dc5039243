"""Recipe: a small autoregressive drafter, distilled from any target that Hugging Face can load.

It learns the target's whole law (KL, and the total variation that acceptance is made of) on two kinds of text: the
corpus, and what the target itself writes when it goes on from the corpus, since only the latter is met in serving.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from specserve.train import loop
from specserve.train.artefact import Report, fingerprint, save_model, write_provenance
from specserve.train.corpus import load
from specserve.train.progress import shown
from specserve.train.regenerate import Written
from specserve.train.shape import Shape
from specserve.train.teacher import Teacher, have_written
from specserve.train.tokens import Ids, batch, pack, shuffled

# 0.95M parameters with a vocabulary of 4096 (`vocab` becomes the target's). One layer cannot look up what followed
# an earlier occurrence of a word, two can. A step costs 0.5 ms on 2 cores (the target's 2.4, inflated to 130M 21).
SHAPE = Shape(vocab=4096, hidden=128, layers=2, ffn=384, heads=4, kv_heads=4, head_dim=32)


def train_ar(
    target: Path,
    out: Path,
    *,
    corpus: Sequence[Path] = (),
    library: bool = True,
    seed: int = 0,
    tokens: int = 9_000_000,
    minutes: float | None = None,
    rows: int = 2048,
    prompt: int = 256,
    new: int = 256,
    shape: Shape = SHAPE,
    batch_size: int = 4,
    length: int = 1024,
    peak_lr: float = 3e-3,
    variation: float = 1.0,
    workdir: Path | None = None,
    resume: bool = True,
    device: str = "auto",
    report: loop.Reporter | None = None,
) -> Report:
    """Distil a drafter from the model in `target`, and write it to `out` as a Hugging Face directory.

    Args:
        target: a directory with a causal LM and its `tokenizer.json`.
        corpus, library: the text, see `specserve.train.corpus.load`.
        tokens: how many tokens to train on, one third of them from the corpus.
        minutes: ends earlier when this much training time is used up (the target's writing not counted).
        rows, prompt, new: how many texts the target writes, from prompts of at most `prompt` tokens, and how many
            tokens each.
        batch_size, length: windows of the corpus per step, and tokens per window.
        variation: weight of the total variation beside the KL divergence.
        workdir: where the target's texts and checkpoints live, `runs/ar` if not given.
        report: called after every step; by default progress is shown on stderr.
    Raises:
        ConfigError: `target` has no `tokenizer.json`.
    """
    teacher = Teacher.load(target, device)
    workdir = workdir or Path("runs/ar")
    texts = load(corpus, library=library)
    ids = pack((d.text for d in texts.train), teacher.tokenizer, end=teacher.ends[0])

    def showing(title: str) -> AbstractContextManager[loop.Reporter]:
        return shown(title) if report is None else nullcontext(report)

    with showing("the target writes") as tell:
        lesson = have_written(
            teacher, texts, workdir, rows=rows, prompt=prompt, new=new, seed=seed, resume=resume, report=tell
        )
    checks = lesson.checks

    torch.manual_seed(seed)
    shape = replace(shape, vocab=teacher.model.config.vocab_size)
    end = teacher.ends if len(teacher.ends) > 1 else teacher.ends[0]
    model = shape.model(end=list(end) if isinstance(end, tuple) else end).to(teacher.model.device)
    _begin_with(teacher.model, model)
    lessons = Lessons(ids, lesson.written, size=batch_size, length=length, seed=seed)
    plan = loop.Plan(
        steps=max(1, math.ceil(tokens / (batch_size * length))),
        tokens_per_step=batch_size * length,
        peak_lr=peak_lr,
        seed=seed,
        minutes=minutes,
    )

    def loss_at(step: int) -> Tensor:
        read, counts = (t.to(model.device) for t in lessons.at(step))
        with torch.no_grad():
            p = teacher.model(input_ids=read, use_cache=False).logits[counts]
        q = model(input_ids=read, use_cache=False).logits[counts]
        return divergence(p.float(), q.float(), variation=variation)

    recipe = {
        "shape": asdict(shape), "plan": asdict(plan), "batch_size": batch_size, "length": length,
        "variation": variation, "written_by_target": lesson.by, "target": teacher.weights,
    }  # fmt: skip
    with showing("ar") as tell:
        state = loop.fit(
            model,
            loss_at,
            plan,
            fingerprint=fingerprint({**recipe, "corpus": texts.sha256}),
            checkpoint=workdir / "checkpoint.pt",
            resume=resume,
            evaluate=lambda: acceptance(model, teacher.model, checks),
            report=tell,
        )
    teacher.copy_tokenizer(out)
    save_model(model, out)
    outcome = Report(
        out=out,
        parameters=sum(p.numel() for p in model.parameters()),
        steps=state.step,
        tokens=state.step * plan.tokens_per_step,
        seconds=state.seconds,
        figures=acceptance(model.float(), teacher.model, checks),
    )
    write_provenance(
        outcome,
        model="specserve drafter: Llama-shaped, distilled from the target",
        recipe="specserve.train.ar",
        seed=seed,
        corpus=texts.describe(),
        **recipe,
        loss_curve=loop.sampled(state.curve),
        evaluations=state.figures,
    )
    return outcome


@dataclass(frozen=True)
class Lessons:
    """What the drafter reads at each step: every third batch is corpus, the others were written by the target."""

    corpus: Ids
    written: Written
    size: int
    length: int
    seed: int

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """Ids [B, L] and which of their positions count [B, L]; about size × length tokens in both cases."""
        if step % 3 == 0:
            read = batch(self.corpus, step // 3, size=self.size, length=self.length, seed=self.seed)[:, :-1]
            return read, torch.ones_like(read, dtype=torch.bool)
        rows = max(1, self.size * self.length // self.written.ids.shape[1])
        chosen = shuffled(len(self.written.ids), step - step // 3 - 1, size=rows, seed=self.seed)
        return torch.from_numpy(self.written.ids[chosen].astype("int64"))[:, :-1], self.written.mask(chosen)


def divergence(p: Tensor, q: Tensor, *, variation: float) -> Tensor:
    """Mean of KL(p ‖ q) + variation · TV(p, q) in nats; p, q: logits of target and drafter, [N, V]."""
    log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    return ((p * (log_p - log_q)).sum(-1) + variation * 0.5 * (p - q).abs().sum(-1)).mean()


def acceptance(model: Any, teacher: Any, checks: dict[float, Written]) -> dict[str, float]:
    """How often drafts would be accepted, on what the target wrote from held-out prompts at temperatures 0 and 1.

    Returns:
        greedy_agreement: both models' best ids are the same (text of temperature 0);
        overlap: sum over ids of min(p, q) (text of temperature 1).
    """
    measures: dict[str, tuple[float, Callable[[Tensor, Tensor], Tensor]]] = {
        "greedy_agreement": (0.0, lambda p, q: (p.argmax(-1) == q.argmax(-1)).float()),
        "overlap": (1.0, lambda p, q: torch.minimum(p.softmax(-1), q.softmax(-1)).sum(-1)),
    }
    figures = {}
    for name, (temperature, measure) in measures.items():
        text, total, count = checks[temperature], 0.0, 0
        with loop.evaluating(model):
            for first in range(0, len(text.ids), 8):
                chosen = torch.arange(first, min(first + 8, len(text.ids))).numpy()
                read = torch.from_numpy(text.ids[chosen].astype("int64"))[:, :-1].to(model.device)
                counts = text.mask(chosen, continuation=True).to(model.device)
                p, q = (m(input_ids=read, use_cache=False).logits[counts].float() for m in (teacher, model))
                values = measure(p, q)
                total, count = total + float(values.sum()), count + len(values)
        figures[name] = total / max(1, count)
    return figures


def _begin_with(teacher: Any, model: Any) -> None:
    """Start from the target's embeddings, seen along their strongest directions: similar words start similar."""
    known = teacher.get_input_embeddings().weight.float()
    own = model.get_input_embeddings().weight
    if known.shape[1] >= own.shape[1]:
        known = known - known.mean(0)
        _, _, directions = torch.linalg.svd(known, full_matrices=False)
        reduced = known @ directions[: own.shape[1]].T
        with torch.no_grad():
            own.copy_(reduced * (model.config.initializer_range / reduced.std()))
