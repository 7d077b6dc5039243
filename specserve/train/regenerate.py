"""Text written by the target itself: what a drafter meets at serving time, so what it should learn to foresee."""

import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from specserve.train.corpus import Document
from specserve.train.loop import Progress, Reporter
from specserve.train.tokens import Ids

# The head of a function with its docstring; without any, prompts end at a line's end.
HEAD = re.compile(
    r'^[ \t]*(?:async )?def \w+\([^)]*\)[^:\n]*:\n(?:[ \t]+[rR]?"""(?:(?!""").){0,1200}"""\n)?', re.M | re.S
)
LINE = re.compile(r"[^\n]*\n")


@dataclass(frozen=True)
class Written:
    """Rows of prompt + continuation, [N, L] ids padded on the right; `prompt` and `end` are [N] positions."""

    ids: Ids
    prompt: NDArray[np.int64]
    end: NDArray[np.int64]

    def mask(self, rows: NDArray[np.int64], *, continuation: bool = False) -> torch.Tensor:
        """True where the *next* token is text (of the continuation, if asked): [len(rows), L - 1] bool."""
        place = np.arange(1, self.ids.shape[1])[None]
        text = place < self.end[rows, None]
        return torch.from_numpy(text & (place >= self.prompt[rows, None]) if continuation else text)


def prompts(
    documents: Sequence[Document], tokenizer: Tokenizer, count: int, *, longest: int, random: np.random.Generator
) -> list[list[int]]:
    """`count` token prefixes that end behind a function head, with no, some or much text before it."""
    sizes = np.asarray([len(d.text) for d in documents], dtype=float)
    found: list[str] = []
    for index in random.choice(len(documents), size=count, p=sizes / sizes.sum()):
        text = documents[index].text
        place = int(random.integers(len(text)))
        head = HEAD.search(text, place) or LINE.search(text, place) or LINE.search(text)
        start, stop = head.span() if head else (0, len(text))
        before = max(0, start - int(random.choice([0, 0, 300, 1500])))
        found.append(text[text.rfind("\n", 0, before) + 1 : stop])
    encoded = (e.ids[-longest:] for e in tokenizer.encode_batch(found, add_special_tokens=False))
    return [ids or [0] for ids in encoded]


def write(model: Any, starts: Sequence[Sequence[int]], *, new: int, temperature: float, seed: int) -> Written:
    """Let the target go on from each prompt for up to `new` tokens (stopping after an end-of-text).

    Args:
        starts: token ids of the prompts.
        temperature: 0 is greedy; otherwise samples of the whole law, no top-k or top-p.
    """
    longest = max(map(len, starts))
    ids = torch.zeros(len(starts), longest, dtype=torch.long)
    attention = torch.zeros_like(ids)
    for row, start in enumerate(starts):
        ids[row, longest - len(start) :] = torch.tensor(start)
        attention[row, longest - len(start) :] = 1
    law = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(seed)
        device = model.device
        out = model.generate(
            ids.to(device), attention_mask=attention.to(device), max_new_tokens=new, pad_token_id=0, **law
        ).cpu()
    stops = model.generation_config.eos_token_id
    ends = torch.isin(out[:, longest:], torch.tensor(stops if isinstance(stops, list) else [stops or 0]))
    written = torch.where(ends.any(1), ends.int().argmax(1) + 1, out.shape[1] - longest).numpy()
    prompt = np.asarray([len(start) for start in starts])
    rows = np.zeros((len(starts), longest + new), dtype=np.uint32)
    for row, (size, extra) in enumerate(zip(prompt, written, strict=True)):
        rows[row, : size + extra] = out[row, longest - size : longest + extra].numpy()
    return Written(rows, prompt, prompt + written)


def write_corpus(
    model: Any,
    documents: Sequence[Document],
    tokenizer: Tokenizer,
    folder: Path,
    *,
    rows: int,
    temperatures: Sequence[float],
    longest: int,
    new: int,
    seed: int,
    report: Reporter,
    batch_size: int = 64,
) -> Written:
    """`rows` continuations of prompts from `documents`, the batches taking turns through `temperatures`.

    Each batch is a file in `folder`, so an interrupted run goes on behind the last whole one.
    """
    random = np.random.default_rng([seed, 1])
    starts = prompts(documents, tokenizer, rows, longest=longest, random=random)
    begun, made = time.monotonic(), 0
    files = []
    for index, first in enumerate(range(0, rows, batch_size)):
        file = folder / f"{index:05}.npz"
        if not file.exists():
            group = starts[first : first + batch_size]
            temperature = temperatures[index % len(temperatures)]
            _save(file, write(model, group, new=new, temperature=temperature, seed=seed + index))
            made += len(group)
            speed = made / (time.monotonic() - begun)
            left = rows - first - len(group)
            report(Progress(index + 1, 1 - left / rows, None, speed * new, left / speed))
        files.append(file)
    return _join(list(_loaded(files)), longest + new)


def _save(file: Path, text: Written) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    with partial.open("wb") as stream:
        np.savez(stream, ids=text.ids, prompt=text.prompt, end=text.end)
    os.replace(partial, file)


def _loaded(files: Sequence[Path]) -> Iterator[Written]:
    for file in files:
        with np.load(file) as saved:
            yield Written(saved["ids"], saved["prompt"], saved["end"])


def _join(parts: Sequence[Written], length: int) -> Written:
    ids = np.concatenate([np.pad(p.ids, ((0, 0), (0, length - p.ids.shape[1]))) for p in parts])
    return Written(ids, np.concatenate([p.prompt for p in parts]), np.concatenate([p.end for p in parts]))
