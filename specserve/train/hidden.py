"""The frozen target's last hidden states over its own texts, on disk in bf16: one pass for any number of heads."""

import os
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specserve.engine.hidden import reading
from specserve.train.loop import Progress, Reporter
from specserve.train.regenerate import Written
from specserve.train.teacher import Teacher

_ROWS = 64  # texts per file


class Hidden:
    """Hidden states of N texts of L tokens, and their positions that have a next token."""

    def __init__(self, files: list[Path], written: Written) -> None:
        self._maps = [np.load(file, mmap_mode="r") for file in files]
        self._written = written
        place = np.arange(written.ids.shape[1])[None]
        self._text = (place + 1 < written.end[:, None]).nonzero()
        self._spoken = ((place + 1 >= written.prompt[:, None]) & (place + 1 < written.end[:, None])).nonzero()

    def __len__(self) -> int:
        """Positions that have a next token."""
        return len(self._text[0])

    def at(self, chosen: NDArray[np.int64], count: int) -> tuple[Tensor, Tensor]:
        """Hidden states [len(chosen), d] in bf16 of some positions, and the `count` tokens after each, -1 beyond the
        text's end."""
        return self._take(self._text[0][chosen], self._text[1][chosen], count)

    def spoken(self, count: int, every: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of every so-manieth position of what the target wrote that has `count` tokens after it.

        Returns:
            hidden states there [N, d], before each of these tokens [N, count, d], and the tokens [N, count].
        """
        rows, places = self._spoken
        whole = places + count < self._written.end[rows]
        rows, places = rows[whole][::every], places[whole][::every]
        before = [self._take(rows, places + i, 1)[0] for i in range(count)]
        hidden, tokens = self._take(rows, places, count)
        return hidden, torch.stack(before, 1), tokens

    def _take(self, rows: NDArray[np.int64], places: NDArray[np.int64], count: int) -> tuple[Tensor, Tensor]:
        hidden = np.empty((len(rows), self._maps[0].shape[2]), dtype=np.int16)
        for file in np.unique(rows // _ROWS):
            mine = rows // _ROWS == file
            hidden[mine] = self._maps[file][rows[mine] % _ROWS, places[mine]]
        after = places[:, None] + np.arange(1, count + 1)
        ids = self._written.ids[rows[:, None], np.minimum(after, self._written.ids.shape[1] - 1)].astype(np.int64)
        ids[after >= self._written.end[rows, None]] = -1
        return torch.from_numpy(hidden).view(torch.bfloat16), torch.from_numpy(ids)


def hidden_states(teacher: Teacher, written: Written, folder: Path, report: Reporter) -> Hidden:
    """Of all texts. Each batch is a file in `folder`, so an interrupted run goes on behind the last whole one."""
    folder.mkdir(parents=True, exist_ok=True)
    begun, files, total = time.monotonic(), [], len(written.ids)
    for first in range(0, total, _ROWS):
        file = folder / f"{first // _ROWS:05}.npy"
        files.append(file)
        if file.exists():
            continue
        ids = torch.from_numpy(written.ids[first : first + _ROWS].astype(np.int64))
        rows = [_read(teacher, ids[at : at + 8]) for at in range(0, len(ids), 8)]
        partial = file.with_suffix(".partial")
        with partial.open("wb") as stream:
            np.save(stream, torch.cat(rows).view(torch.int16).numpy())
        os.replace(partial, file)
        seconds, done = time.monotonic() - begun, first + len(ids)
        report(Progress(len(files), done / total, None, done * ids.shape[1] / seconds, seconds * (total / done - 1)))
    return Hidden(files, written)


def _read(teacher: Teacher, ids: Tensor) -> Tensor:
    """[B, L] ids -> [B, L, d] in bf16."""
    with torch.inference_mode(), reading(teacher.model) as seen:
        teacher.model(input_ids=ids.to(teacher.model.device), use_cache=False)
    return seen[0].to(torch.bfloat16).cpu()
