"""Documents as one long row of token ids, and the batches cut from it."""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

Ids = NDArray[np.uint16]


def pack(texts: Iterable[str], tokenizer: Tokenizer, *, end: int) -> Ids:
    """All texts in one row, each begun by the id `end`. [N], so the vocabulary must fit 16 bits."""
    rows: list[int] = [end]
    for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False):
        rows += [*encoding.ids, end]
    return np.asarray(rows, dtype=np.uint16)


def batch(ids: Ids, step: int, *, size: int, length: int, seed: int) -> torch.Tensor:
    """The batch of one step, a function of its arguments alone: that is what makes a resumed run the same run.

    Each epoch shifts the grid of windows by a random offset and visits all of them in a random order.

    Returns:
        [size, length + 1] int64; the model reads the first `length` and is asked for the last `length`.
    """
    windows = max(1, (len(ids) - 1) // length - 1)
    rows = []
    for index in range(step * size, (step + 1) * size):
        epoch, place = divmod(index, windows)
        offset, order = _grid(seed, epoch, windows, min(length, max(1, len(ids) - length - 1)))
        start = offset + int(order[place]) * length
        rows.append(ids[start : start + length + 1])
    return torch.from_numpy(np.stack(rows).astype(np.int64))


_grids: dict[tuple[int, int, int, int], tuple[int, NDArray[np.int64]]] = {}


def _grid(seed: int, epoch: int, windows: int, offsets: int) -> tuple[int, NDArray[np.int64]]:
    key = (seed, epoch, windows, offsets)
    if key not in _grids:
        if len(_grids) > 8:
            _grids.clear()
        random = np.random.default_rng([seed, epoch])
        _grids[key] = int(random.integers(offsets)), random.permutation(windows)
    return _grids[key]
