"""Recipe: a small any-subset model (an XLNet) with a target's tokenizer, for filling gaps.

Every sequence has one order, its given tokens first and then its hidden ones, each by position; the loss is the mean
cross-entropy of the hidden tokens under the oracle mask, so that one pass trains all of their conditionals
(2504.20456, section 4). Half of the sequences hide scattered tokens, at a rate that rises from 0.15 to 0.85-0.99 over
the run; the other half hide spans, some of them with more room than text: those teach the stop token.
"""

import math
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, XLNetConfig, XLNetLMHeadModel

from specserve import zoo
from specserve.errors import ConfigError
from specserve.filling import Cell
from specserve.infill.twostream import Rows, TwoStream
from specserve.train import loop
from specserve.train.artefact import Report, fingerprint, quiet, save_model, write_provenance
from specserve.train.corpus import load
from specserve.train.progress import shown
from specserve.train.tokenizer import END_ID
from specserve.train.tokens import Ids, batch, pack

RATES = ((0.15, 0.15), (0.85, 0.99))  # the scattered rate is drawn between the two, at the start and at the end
SPAN, SPANS, ROOM = 12, 3, 64  # mean tokens of a hidden span; most spans of a sequence; most room beyond the text


@dataclass(frozen=True)
class XlnetShape:
    """1.8M parameters, 3.6 MB, with a vocabulary of 4097 (`vocab` becomes the tokenizer's and the stop token)."""

    vocab: int = 4097
    hidden: int = 160
    layers: int = 4
    ffn: int = 480
    heads: int = 5
    context: int = 512

    def model(self) -> Any:
        """An XLNetLMHeadModel with weights from torch's current random state."""
        config = XLNetConfig(
            vocab_size=self.vocab,
            d_model=self.hidden,
            n_layer=self.layers,
            n_head=self.heads,
            d_inner=self.ffn,
            dropout=0.0,
            bos_token_id=END_ID,
            eos_token_id=END_ID,
            pad_token_id=None,
        )
        config.gap_stop_token_id = self.vocab - 1
        config.context_length = self.context
        return XLNetLMHeadModel(config)


def train_anysubset(
    out: Path,
    *,
    target: Path | None = None,
    start: Path | None = None,
    corpus: Sequence[Path] = (),
    library: bool = True,
    seed: int = 0,
    tokens: int = 8_000_000,
    minutes: float | None = None,
    shape: XlnetShape = XlnetShape(),  # frozen
    batch_size: int = 4,
    length: int = 256,
    peak_lr: float = 1e-3,
    workdir: Path | None = None,
    resume: bool = True,
    device: str = "auto",
    report: loop.Reporter | None = None,
) -> Report:
    """Train an any-subset model on the standard library (and `corpus`), and write it to `out`.

    Args:
        out: gets config, bf16 weights, tokenizer and `provenance.json`.
        target: whose tokenizer it gets, and whose embeddings it starts from; the embedded target by default.
        start: a model that an earlier run has written, to go on from: the learning rate has its schedule anew, the
            rate of hidden tokens stays at its end.
        corpus, library: the text, see `specserve.train.corpus.load`.
        tokens: how many tokens to train on, given ones included.
        minutes: ends earlier when this much training time is used up; the rate of hidden tokens follows `tokens`
            alone, so a run that is cut short has not seen the highest ones.
        batch_size, length: windows per step, and tokens per window.
        workdir: where checkpoints live, `runs/anysubset` if not given.
        report: called after every step; by default progress is shown on stderr.
    Raises:
        ConfigError: `target` has no `tokenizer.json`, a window with its gaps' room does not fit the context, or a
            checkpoint belongs to another recipe.
    """
    target = target or zoo.path("target")
    if not (target / "tokenizer.json").exists():
        raise ConfigError(f"target {str(target)!r} must hold a tokenizer.json; save its fast tokenizer there")
    if length + SPANS * ROOM > shape.context:
        raise ConfigError(f"length must leave {SPANS * ROOM} of the context's {shape.context} tokens; got {length}")
    texts = load(corpus, library=library)
    tokenizer = Tokenizer.from_file(str(target / "tokenizer.json"))
    ids = pack((d.text for d in texts.train), tokenizer, end=END_ID)
    held_out = pack((d.text for d in texts.held_out or texts.train), tokenizer, end=END_ID)

    torch.manual_seed(seed)
    model = _fresh(shape, target, tokenizer) if start is None else XLNetLMHeadModel.from_pretrained(start)
    model = model.float().to(loop.device_for(device))
    streams = TwoStream(model, model.config.context_length)
    plan = loop.Plan(
        steps=max(1, math.ceil(tokens / (batch_size * length))),
        tokens_per_step=batch_size * length,
        peak_lr=peak_lr,
        seed=seed,
        minutes=minutes,
    )
    stop = model.config.gap_stop_token_id
    lessons = Lessons(ids, plan.steps, batch_size, length, seed, stop, risen=start is not None)
    recipe = {
        "shape": asdict(shape), "plan": asdict(plan), "batch_size": batch_size, "length": length,
        "rates": RATES, "span": SPAN, "spans": SPANS, "room": ROOM, "start": None if start is None else start.name,
    }  # fmt: skip
    with shown("anysubset") if report is None else nullcontext(report) as tell:
        state = loop.fit(
            model,
            lambda step: hidden_loss(streams, lessons.at(step)),
            plan,
            fingerprint=fingerprint({**recipe, "corpus": texts.sha256}),
            checkpoint=(workdir or Path("runs/anysubset")) / "checkpoint.pt",
            resume=resume,
            evaluate=lambda: losses(streams, held_out, length=length, windows=16),
            report=tell,
        )
    out.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (target / name).exists():
            shutil.copyfile(target / name, out / name)
    save_model(model, out)
    model.float()
    outcome = Report(
        out=out,
        parameters=sum(p.numel() for p in model.parameters()),
        steps=state.step,
        tokens=state.step * plan.tokens_per_step,
        seconds=state.seconds,
        figures=losses(streams, held_out, length=length, windows=64),
    )
    write_provenance(
        outcome,
        model="specserve any-subset model: XLNet, trained from scratch",
        recipe="specserve.train.anysubset",
        seed=seed,
        corpus=texts.describe(),
        **recipe,
        loss_curve=loop.sampled(state.curve),
        evaluations=state.figures,
    )
    return outcome


@dataclass(frozen=True, slots=True)
class Lesson:
    """One sequence in the order of its ranks: `given` of the cells are visible, the others hidden."""

    cells: list[Cell]
    given: int


@dataclass(frozen=True)
class Lessons:
    """What is read and hidden at each step, a function of the step alone."""

    corpus: Ids
    steps: int
    size: int
    length: int
    seed: int
    stop: int
    risen: bool = False  # whether the rate stays where it ends: for a model that has been trained before

    def at(self, step: int) -> list[Lesson]:
        rows = batch(self.corpus, step, size=self.size, length=self.length, seed=self.seed)[:, :-1].tolist()
        random = np.random.default_rng([self.seed, step, 1])
        done = 1.0 if self.risen else step / self.steps
        low, high = (a + (b - a) * done for a, b in zip(*RATES, strict=True))
        return [
            spans(row, random, self.stop) if i % 2 else scattered(row, random.uniform(low, high), random)
            for i, row in enumerate(rows)
        ]


def scattered(tokens: Sequence[int], rate: float, random: np.random.Generator) -> Lesson:
    """Each token but the first hidden with probability `rate`; at least one is."""
    hidden = random.random(len(tokens)) < rate
    hidden[int(random.integers(1, len(tokens)))] = True
    hidden[0] = False
    cells = list(enumerate(tokens))
    given = [cell for cell, hide in zip(cells, hidden, strict=True) if not hide]
    return Lesson(given + [cell for cell, hide in zip(cells, hidden, strict=True) if hide], len(given))


def spans(tokens: Sequence[int], random: np.random.Generator, stop: int) -> Lesson:
    """One to three hidden spans. Every other one has room for more: a stop token follows its text, and the positions
    that it leaves are nobody's."""
    count = int(random.integers(1, SPANS + 1))
    starts = sorted(random.choice(np.arange(1, len(tokens)), count, replace=False).tolist())
    given: list[Cell] = []
    hidden: list[Cell] = []
    position = at = 0
    for start, bound in zip(starts, [*starts[1:], len(tokens)], strict=True):
        size = min(int(random.geometric(1 / SPAN)), bound - start)
        room = min(int(random.geometric(1 / SPAN)), ROOM) if random.random() < 0.5 else 0
        given += [(position + i, token) for i, token in enumerate(tokens[at:start])]
        position += start - at
        text = [*tokens[start : start + size], stop] if room else tokens[start : start + size]
        hidden += [(position + i, token) for i, token in enumerate(text)]
        position, at = position + size + room, start + size
    given += [(position + i, token) for i, token in enumerate(tokens[at:])]
    return Lesson(given + hidden, len(given))


def hidden_loss(streams: TwoStream, lessons: Sequence[Lesson]) -> Tensor:
    """Mean cross-entropy of the hidden tokens under the oracle mask, in nats."""
    rows, labels = rows_of(lessons, streams.context)
    device = streams.model.device
    logits = streams(Rows(*(getattr(rows, name).to(device) for name in Rows.__slots__)))
    return cross_entropy(logits.float().flatten(0, 1), labels.to(device).flatten(), ignore_index=-1)


def rows_of(lessons: Sequence[Lesson], context: int) -> tuple[Rows, Tensor]:
    """One pass under the oracle mask: every token a content row, every hidden one a query row too.

    Returns:
        The rows, and the hidden tokens by query row, int64 [B, Q], -1 for padding.
    """
    a = max(len(lesson.cells) for lesson in lessons)
    q = max(len(lesson.cells) - lesson.given for lesson in lessons)
    ids, labels = np.zeros((len(lessons), a), np.int64), np.full((len(lessons), q), -1, np.int64)
    positions, seen = np.zeros((len(lessons), a + q), np.int64), np.ones((len(lessons), a + q), np.int64)
    for row, lesson in enumerate(lessons):
        cells, given = np.array(lesson.cells), lesson.given
        n = len(cells)
        assert cells[:, 0].max() < context
        ids[row, :n], positions[row, :n] = cells[:, 1], cells[:, 0]
        seen[row, :n] = np.maximum(np.arange(1, n + 1), given)
        positions[row, a : a + n - given], labels[row, : n - given] = cells[given:, 0], cells[given:, 1]
        seen[row, a : a + n - given] = np.arange(given, n)
    none, counts = np.zeros(len(lessons), np.int64), np.array([len(lesson.cells) for lesson in lessons])
    return Rows(*map(torch.from_numpy, (ids, positions, seen, none, counts))), torch.from_numpy(labels)


def losses(streams: TwoStream, ids: Ids, *, length: int, windows: int) -> dict[str, float]:
    """Held-out nats per hidden token, over the same windows and masks in every evaluation."""
    kinds = {"loss_15_hidden": 0.15, "loss_50_hidden": 0.5, "loss_95_hidden": 0.95, "loss_spans": None}
    starts = range(0, max(1, len(ids) - length), length)[:windows]
    stop = streams.model.config.gap_stop_token_id
    figures = {}
    with loop.evaluating(streams.model):
        for name, rate in kinds.items():
            random, total = np.random.default_rng(0), []
            for start in starts:
                row = ids[start : start + length].tolist()
                lesson = spans(row, random, stop) if rate is None else scattered(row, rate, random)
                total.append(float(hidden_loss(streams, [lesson])))
            figures[name] = sum(total) / len(total)
    return figures


def _fresh(shape: XlnetShape, target: Path, tokenizer: Tokenizer) -> Any:
    """A new model that starts from the target's embeddings, seen along their strongest directions."""
    model = XlnetShape(**{**asdict(shape), "vocab": tokenizer.get_vocab_size() + 1}).model()
    with quiet():
        teacher = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    known = teacher.get_input_embeddings().weight[: tokenizer.get_vocab_size()]
    own = model.get_input_embeddings().weight
    if known.shape[1] >= own.shape[1]:
        with torch.no_grad():
            known = known - known.mean(0)
            _, _, directions = torch.linalg.svd(known, full_matrices=False)
            reduced = known @ directions[: own.shape[1]].T
            own[: len(known)] = reduced * (model.config.initializer_range / reduced.std())
    return model
