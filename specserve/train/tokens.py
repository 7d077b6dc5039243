"""Documents as one long row of token ids, and the batches cut from it."""

from collections.abc import Iterable
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

Ids = NDArray[np.uint32]


def pack(texts: Iterable[str], tokenizer: Tokenizer, *, end: int) -> Ids:
    """All texts in one row, each begun by the id `end`. [N]"""
    rows: list[int] = [end]
    for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False):
        rows += [*encoding.ids, end]
    return np.asarray(rows, dtype=np.uint32)


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


def shuffled(count: int, step: int, *, size: int, seed: int) -> NDArray[np.int64]:
    """The `size` items of `count` that a step uses, [size]; every epoch has its own order."""
    places = [divmod(index, count) for index in range(step * size, (step + 1) * size)]
    return np.asarray([_grid(seed, epoch, count, 1)[1][place] for epoch, place in places])


@lru_cache(maxsize=8)
def _grid(seed: int, epoch: int, windows: int, offsets: int) -> tuple[int, NDArray[np.int64]]:
    random = np.random.default_rng([seed, epoch])
    return int(random.integers(offsets)), random.permutation(windows)
