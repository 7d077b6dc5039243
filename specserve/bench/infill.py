"""Infilling measured: passes per token, seconds and quality of every way to draft, interleaved on the same gaps."""

from __future__ import annotations

import gzip
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from specserve.errors import ConfigError
from specserve.infill.decode import Decoder, Task, fill
from specserve.infill.model import AnySubsetModel, load
from specserve.train.corpus import load as load_corpus
from specserve.types import Gap, InfillSpec, Piece, Sampling

GROUP = 8  # sequences that every arm fills before the next arm's turn


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to fill. batch: requests at once; cache: whether keys are kept from pass to pass."""

    drafter: str
    k: int = 0
    batch: int = 1
    cache: bool = True

    def __str__(self) -> str:
        name = {"none": "sequential", "self": f"ASSD self, k={self.k}", "ngram": f"ASSD n-gram, k={self.k}"}
        return (
            name[self.drafter]
            + (f", batch {self.batch}" if self.batch > 1 else "")
            + ("" if self.cache else ", no cache")
        )


def arms(depths: Sequence[int], batch: int) -> list[Arm]:
    """Sequential first: the others are compared with it. Then keys that are not kept, and passes that are shared."""
    drafted = [Arm(drafter, k) for drafter in ("self", "ngram") for k in depths]
    uncached = [Arm("none", cache=False), Arm("self", 5, cache=False)]
    return [Arm("none"), *drafted, *uncached, Arm("none", batch=batch), Arm("self", 5, batch=batch)]


@dataclass(frozen=True, slots=True)
class Problem:
    """Pieces with one answer that is known: the tokens that were hidden, in order."""

    pieces: tuple[Piece, ...]
    hidden: tuple[int, ...]


@dataclass(slots=True)
class Tally:
    """Totals of one arm on one set of problems."""

    seconds: float = 0.0
    tokens: int = 0
    passes: int = 0
    drafted: int = 0
    accepted: int = 0
    exact: int = 0
    nats: list[float] = field(default_factory=list)  # per token under the scorer, of each sequence
    bits: list[float] = field(default_factory=list)  # entropy of each sequence's tokens

    def summary(self) -> dict[str, float]:
        return {
            "passes_per_token": self.passes / self.tokens,
            "seconds": self.seconds,
            "tokens_per_s": self.tokens / self.seconds,
            "tokens": self.tokens,
            "passes": self.passes,
            "drafted": self.drafted,
            "accepted": self.accepted,
            "exact_matches": self.exact,
            "perplexity": math.exp(sum(self.nats) / len(self.nats)) if self.nats else math.nan,
            "entropy_bits": sum(self.bits) / len(self.bits) if self.bits else math.nan,
        }


def run(
    model_dir: Path,
    problem_files: Sequence[Path],
    *,
    arms: Sequence[Arm],
    scorer: Path | None = None,
    sequences: int = 64,
    length: int = 256,
    hidden: float = 0.95,
    temperature: float = 1.0,
    limit: int | None = None,
    threads: int = 1,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Every arm on every set of problems: held-out library text, and the files' gaps.

    Args:
        problem_files: JSON lines of `prompt`, `suffix` and `canonical_solution` (HumanEval infilling), may be .gz.
        scorer: a causal LM with the same tokenizer, for perplexity; None leaves it out.
        sequences, length, hidden: of the library text: how many windows, their tokens, and the share that is hidden.
        limit: problems of each file at most.
    """
    torch.set_num_threads(threads)
    model = load(model_dir)
    tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    sets = {f"library, {hidden:.0%} hidden": library(tokenizer, sequences, length, hidden)}
    for path in problem_files:
        sets[path.name.split(".")[0]] = problems(path, tokenizer, model.facts.context_len)[:limit]
    judge = None if scorer is None else _scorer(scorer)
    results: dict[str, Any] = {}
    for name, items in sets.items():
        report(f"{name}: {len(items)} sequences")
        results[name] = {
            str(arm): tally.summary() for arm, tally in compare(model, items, arms, temperature, judge).items()
        }
    return results


def compare(
    model: AnySubsetModel,
    items: Sequence[Problem],
    arms: Sequence[Arm],
    temperature: float,
    judge: Callable[[Sequence[int]], float] | None = None,
) -> dict[Arm, Tally]:
    """All arms on the same problems and seeds; a few problems for one arm, then for the next, in rotating order."""
    decoders = {arm: Decoder(model, seats=arm.batch, cache=arm.cache) for arm in arms}
    tallies = {arm: Tally() for arm in arms}
    warm = [_spec(problem, arms[0], temperature, 0) for problem in items[:1]]
    fill(Decoder(model, seats=1), warm)
    for turn, first in enumerate(range(0, len(items), GROUP)):
        group = items[first : first + GROUP]
        for i in range(len(arms)):
            arm = arms[(i + turn) % len(arms)]
            specs = [_spec(problem, arm, temperature, first + j) for j, problem in enumerate(group)]
            began = time.perf_counter()
            tasks = fill(decoders[arm], specs)
            tallies[arm].seconds += time.perf_counter() - began
            for problem, task in zip(group, tasks, strict=True):
                _count(tallies[arm], problem, task, judge)
    return tallies


def library(tokenizer: Tokenizer, sequences: int, length: int, hidden: float) -> list[Problem]:
    """Windows of held-out standard-library modules with scattered tokens hidden, the first one never."""
    found: list[Problem] = []
    random = np.random.default_rng(0)
    for document in load_corpus().held_out:
        ids = tokenizer.encode(document.text).ids
        for start in range(0, len(ids) - length, length):
            if len(found) == sequences:
                return found
            window = ids[start : start + length]
            hide = set((1 + random.choice(length - 1, round(hidden * length), replace=False)).tolist())
            found.append(_scattered(window, hide))
    return found


def problems(path: Path, tokenizer: Tokenizer, context: int) -> list[Problem]:
    """Gaps of the true number of tokens between prompt and suffix, both cut to fit the context.

    Raises:
        ConfigError: the file cannot be read, or a line lacks a key.
    """
    found = []
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        for line in raw.decode().splitlines():
            item = json.loads(line)
            before, gap, after = (tokenizer.encode(item[k]).ids for k in ("prompt", "canonical_solution", "suffix"))
            after = after[: (context - len(gap)) // 3]
            before = before[-(context - len(gap) - len(after)) :]
            if gap and before:
                pieces: list[Piece] = [tuple(before), Gap(len(gap)), tuple(after)]
                found.append(Problem(tuple(piece for piece in pieces if piece), tuple(gap)))
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{path} must hold prompt, suffix and canonical_solution a line: {error!r}") from error
    return found


def markdown(results: dict[str, Any]) -> str:
    """A table for each set of problems; seconds as a share of the first arm's too."""
    lines = []
    for name, arms in results.items():
        if not isinstance(arms, dict) or name == "conditions":
            continue
        base = next(iter(arms.values()))["seconds"]
        lines += [
            f"{name}:\n",
            "| arm | passes/token | seconds | vs first | tokens/s | accepted | exact | perplexity | entropy, bits |",
            "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
        ]
        for arm, row in arms.items():
            share = row["accepted"] / row["drafted"] if row["drafted"] else math.nan
            lines.append(
                f"| {arm} | {row['passes_per_token']:.3f} | {row['seconds']:.2f} | {row['seconds'] / base:.2f} | "
                f"{row['tokens_per_s']:.0f} | {share:.2f} | {row['exact_matches']} | {row['perplexity']:.1f} | "
                f"{row['entropy_bits']:.2f} |"
            )
        lines.append("")
    return "\n".join(lines)


def _spec(problem: Problem, arm: Arm, temperature: float, seed: int) -> InfillSpec:
    return InfillSpec(problem.pieces, Sampling(temperature=temperature, seed=seed), arm.drafter, arm.k)


def _scattered(window: Sequence[int], hide: set[int]) -> Problem:
    pieces: list[Piece] = []
    run: list[int] = []
    gap = 0
    for i, token in enumerate(window):
        if i in hide:
            if run:
                pieces.append(tuple(run))
            run, gap = [], gap + 1
        else:
            if gap:
                pieces.append(Gap(gap))
            gap = 0
            run.append(token)
    pieces.append(Gap(gap) if gap else tuple(run))
    return Problem(tuple(pieces), tuple(token for i, token in enumerate(window) if i in hide))


def _count(tally: Tally, problem: Problem, task: Task, judge: Callable[[Sequence[int]], float] | None) -> None:
    written = [token for _, token in task.filling.written]
    tally.tokens += len(written)
    tally.passes += task.passes
    tally.drafted += task.drafted
    tally.accepted += task.accepted
    tally.exact += tuple(written) == problem.hidden
    whole = [token for _, token in sorted(task.filling.content)]
    shares = np.array(list(Counter(whole).values())) / len(whole)
    tally.bits.append(float(-(shares * np.log2(shares)).sum()))
    if judge is not None:
        tally.nats.append(judge(whole))


def _scorer(path: Path) -> Callable[[Sequence[int]], float]:
    """Mean nats per token of a sequence under a causal LM."""
    from transformers import AutoModelForCausalLM

    scorer = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()

    def nats(ids: Sequence[int]) -> float:
        row = torch.tensor([list(ids)])
        with torch.inference_mode():
            return float(scorer(row, labels=row).loss)

    return nats
