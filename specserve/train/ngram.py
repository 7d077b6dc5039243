"""Recipe: tables of a target's own unigrams and bigrams, for drafting without a model.   (N-Grammys, 2411.03786)

The target is run once on every single token of its vocabulary; nothing is learned, and no text is needed.
"""

from __future__ import annotations

import json
import shutil
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from specserve.draft.ngram.table import Table, save_table
from specserve.errors import ConfigError
from specserve.fingerprint import fingerprint
from specserve.train import loop
from specserve.train.artefact import Report, quiet, sha256_of, versions
from specserve.train.progress import shown

_WRITTEN, _LENGTH = 64, 32  # texts and tokens on which agreement is measured


def train_ngram(
    target: Path,
    out: Path,
    *,
    successors: int = 16,
    greedy_rows: int = 4,
    greedy_depth: int = 6,
    unigrams: int = 32,
    first: int | None = None,
    batch: int = 256,
    resume: bool = True,
    workdir: Path | None = None,
    device: str = "auto",
    report: loop.Reporter | None = None,
) -> Report:
    """Make the table of the model in `target`, and write it to the file `out`; `out` with .json says how.

    Args:
        successors: k, the likeliest next tokens kept of every token, 1 to 255.
        greedy_rows, greedy_depth: of the first so many successors also what greedy decoding goes on with, in tokens
            with the successor itself; 0 rows leaves it out, and drafters go on with bigrams instead.
        first: a token id to put before every single token, such as a beginning of text; None for nothing.
        batch: tokens in one forward pass.
        workdir: where finished batches live until the table is whole; `out` with .parts if not given.
    Returns:
        how often the next token of texts that the target writes is its bigram's first, and among its first k.
    Raises:
        ConfigError: a number is out of its bounds.
    """
    for name, value, least, most in (
        ("successors", successors, 1, 255),
        ("greedy_rows", greedy_rows, 0, successors),
        ("greedy_depth", greedy_depth, 1, 64),
        ("unigrams", unigrams, 1, 1 << 16),
        ("batch", batch, 1, 1 << 16),
    ):
        if not least <= value <= most:
            raise ConfigError(f"{name} must be between {least} and {most}; got {value}")
    began, made_for = time.monotonic(), fingerprint(target)
    place = loop.device_for(device)
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32 if place.type == "cpu" else "auto")
    model.to(place).eval()
    recipe = {
        "successors": successors,
        "greedy_rows": greedy_rows,
        "greedy_depth": greedy_depth,
        "unigrams": unigrams,
        "first": first,
        "batch": batch,
    }
    folder = (workdir or out.with_suffix(".parts")) / f"{made_for}-{'-'.join(str(v) for v in recipe.values())}"
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)
    vocab = model.get_output_embeddings().weight.shape[0]
    showing: AbstractContextManager[loop.Reporter] = nullcontext(report) if report else shown("ngram")
    parts: list[dict[str, np.ndarray[Any, Any]]] = []
    with showing as tell, torch.inference_mode():
        for number, start in enumerate(range(0, vocab, batch)):
            file = folder / f"{number:06}.npz"
            if not file.exists():
                tokens = torch.arange(start, min(start + batch, vocab), device=place)
                _save(file, _look(model, tokens, first, successors, greedy_rows, greedy_depth))
            with np.load(file) as saved:
                parts.append(dict(saved))
            done = min(start + batch, vocab)
            speed = done / (time.monotonic() - began)
            tell(loop.Progress(number + 1, done / vocab, None, speed, (vocab - done) / speed))
        whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        table = Table(made_for, _unigrams(model, unigrams), whole["successors"], whole["chances"], whole.get("greedy"))
        figures = _agreement(model, table, first)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_table(table, out, target=target.name, recipe=recipe)
    passes = len(parts) * (1 + (greedy_depth - 1 if greedy_rows else 0))
    out.chmod(0o644)
    made = Report(out, table.successors.size, passes, vocab, time.monotonic() - began, figures)
    facts = {
        "recipe": "specserve.train.ngram",
        "target": target.name,
        "fingerprint": made_for,
        "settings": recipe,
        "vocab_size": vocab,
        "seconds": round(made.seconds, 1),
        "figures": {name: round(value, 4) for name, value in figures.items()},
        "device": place.type,
        "versions": versions(),
        "sha256": sha256_of(out),
    }
    out.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n")
    shutil.rmtree(folder)
    if workdir is None and not any(folder.parent.iterdir()):
        folder.parent.rmdir()
    return made


def _look(
    model: Any, tokens: Tensor, first: int | None, successors: int, rows: int, depth: int
) -> dict[str, np.ndarray[Any, Any]]:
    """What the target says after each of the tokens alone."""
    before = tokens[:, None]
    if first is not None:
        before = torch.cat([torch.full_like(before, first), before], 1)
    chance, ids = _next(model, before).softmax(-1).topk(successors)
    part = {
        "successors": ids.int().cpu().numpy(),
        "chances": (255 * chance).round().byte().cpu().numpy(),
    }
    if rows:
        text = torch.cat([before.repeat_interleave(rows, 0), ids[:, :rows].reshape(-1, 1)], 1)
        text = _go_on(model, text, depth - 1)[:, before.shape[1] :]
        part["greedy"] = text.reshape(len(tokens), rows, depth).int().cpu().numpy()
    return part


def _next(model: Any, ids: Tensor) -> Tensor:
    """Logits after the last token, [B, V]."""
    logits: Tensor = model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[:, -1].float()
    return logits


def _go_on(model: Any, text: Tensor, more: int) -> Tensor:
    """`text`, [B, n], and what greedy decoding goes on with, [B, n + more]."""
    fed, cache = text, None
    for _ in range(more):
        out = model(input_ids=fed, past_key_values=cache, use_cache=True, logits_to_keep=1)
        fed, cache = out.logits[:, -1].argmax(-1, keepdim=True), out.past_key_values
        text = torch.cat([text, fed], 1)
    return text


def _unigrams(model: Any, count: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Tokens by the distance of their output embedding to the mean one, nearest first, in the metric that the input
    embeddings span: (u - ū)ᵀ Cov(E) (u - ū). Common tokens lie near the mean."""
    output, given = (
        part.weight.double().cpu() for part in (model.get_output_embeddings(), model.get_input_embeddings())
    )
    away = output - output.mean(0)
    metric = torch.cov(given.T) if len(given) > 1 else torch.eye(given.shape[1], dtype=torch.double)
    distance = torch.einsum("vd,de,ve->v", away, metric, away)
    ids: np.ndarray[Any, np.dtype[np.int32]] = distance.argsort()[:count].int().numpy()
    return ids


def _agreement(model: Any, table: Table, first: int | None) -> dict[str, float]:
    """On texts that the target writes greedily from tokens spread over its vocabulary."""
    text = torch.arange(0, table.vocab_size, max(1, table.vocab_size // _WRITTEN), device=model.device)[:, None]
    if first is not None:
        text = torch.cat([torch.full_like(text, first), text], 1)
    ids = (
        _go_on(model, text, _LENGTH).cpu().numpy()[:, 1:]
    )  # what follows the first token is in the table by construction
    found = table.successors[ids[:, :-1]] == ids[:, 1:, None]
    return {"first_successor": float(found[..., 0].mean()), "any_successor": float(found.any(-1).mean())}


def _save(file: Path, part: dict[str, np.ndarray[Any, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    with partial.open("wb") as stream:
        np.savez(stream, **part)  # type: ignore[arg-type]
    partial.replace(file)
