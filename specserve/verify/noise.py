"""Counter-based randomness: pure functions of (seed, purpose, position, token or index).

No state and no global generator. A draw is the same whoever asks for it, on whatever device, in whatever batch: every
random bit comes from integer arithmetic (of the one logarithm after it devices may round the last place differently,
which is a near-tie like those of the logits themselves). Distinct purposes never share a stream.

Gumbel noise is held as exponential arrival times, g = -log E. The token of a law p is the winner of
the race argmin E_v / p_v = argmax (log p_v + g_v). Winners have small E = -log(1 - u), so u → 0 is the end that must be
precise: u = (h + w) / 2³¹ with a 31-bit hash h, and w = 1/2 except where h is so small that the width of a cell would
show in the probability of a rare token; there w is 52 more hashed bits.
"""

from __future__ import annotations

import enum
import functools
import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

_WORD = 0xFFFF_FFFF_FFFF_FFFF
_GOLDEN = 0x9E37_79B9_7F4A_7C15
_SMALL = 1 << 12  # hashes below get 52 more bits: the relative width of every cell stays under 2⁻¹²
_SCALE = 2.0**-31 - 2.0**-55  # the largest float below 2⁻³¹: keeps u < 1 when the hash rounds up to 2³¹


class Purpose(enum.IntEnum):
    """What a draw is for. Streams of different purposes are independent. The numbers fix every seed's output."""

    TOKEN = 0  # the shared noise of `coupled`: the emitted token of a position
    ACCEPT = 1  # the coins of acceptance
    RESIDUAL = 2  # recovered and bonus tokens of the rules that toss coins
    DRAFT = 3  # tokens drawn by a drafter for those rules


def mix64(x: int) -> int:
    """The finaliser of splitmix64: a bijection of 64-bit words that avalanches."""
    x = ((x ^ (x >> 30)) * 0xBF58_476D_1CE4_E5B9) & _WORD
    x = ((x ^ (x >> 27)) * 0x94D0_49BB_1331_11EB) & _WORD
    return x ^ (x >> 31)


@functools.lru_cache(maxsize=4096)
def _stem(seed: int, purpose: int) -> int:
    return mix64(mix64((seed + _GOLDEN) & _WORD) + (purpose + 1) * _GOLDEN & _WORD)


def key(seed: int, purpose: Purpose, position: int) -> int:
    """The 64-bit key of one position's stream. Seeds count modulo 2⁶⁴."""
    return mix64((_stem(seed, purpose) + (position + 1) * _GOLDEN) & _WORD)


def uniform(seed: int, purpose: Purpose, position: int, index: int) -> float:
    """One uniform in the open interval (0, 1), with 52 bits."""
    return _unit(substream(key(seed, purpose, position), index))


def _unit(word: int) -> float:
    return ((word >> 12) + 0.5) * 2.0**-52


def substream(key: int, index: int) -> int:
    """The key of the index-th stream below a key."""
    return mix64((key + (index + 1) * _GOLDEN) & _WORD)


def log_arrivals(keys: Sequence[int], ids: int | Tensor, device: torch.device | str = "cpu") -> Tensor:
    """log E of exponential arrival times: see `arrivals`."""
    return arrivals(keys, ids, device).log_()


def arrivals(keys: Sequence[int], ids: int | Tensor, device: torch.device | str = "cpu") -> Tensor:
    """Exponential arrival times E, one stream per row.

    Args:
        keys: N stream keys, see `key`.
        ids: the size V of the vocabulary, for all of its tokens; or token ids, int64 [N, m].
    Returns:
        [N, V] or [N, m], fp32, between 2⁻⁸⁴ and 16.7.
    """
    if isinstance(ids, int):
        table = _table(ids, str(device))[:ids]
    else:
        device = ids.device
        table = _table(1 + int(ids.max()), str(device))[ids]
    x = torch.bitwise_xor(table, _column((k & 0xFFFF_FFFF for k in keys), device))
    shifted = torch.empty_like(x)

    def fold() -> None:  # x ^= x >>> 15; torch shifts int32 arithmetically, so the copies of the sign are masked away
        torch.bitwise_right_shift(x, 15, out=shifted)
        x.bitwise_xor_(shifted.bitwise_and_(0x1FFFF))

    x.mul_(0x2C1B_3C6D)
    fold()
    x.bitwise_xor_(_column((k >> 32 for k in keys), device))
    x.mul_(0x297A_2D39)
    fold()
    x.bitwise_and_(0x7FFF_FFFF)
    out = x.to(torch.float32)
    out.add_(0.5).mul_(-_SCALE).log1p_().neg_()
    if x.numel() and int(x.amin()) < _SMALL:
        _refine(out, x, keys, ids)
    return out


def gumbel(keys: Sequence[int], vocab: int, device: torch.device | str = "cpu") -> Tensor:
    """Standard Gumbel noise, [N, vocab], fp32: one stream per row."""
    return log_arrivals(keys, vocab, device).neg_()


def _refine(out: Tensor, hashes: Tensor, keys: Sequence[int], ids: int | Tensor) -> None:
    """Give the smallest hashes 52 more bits. About two entries in a million, so plain Python is quick."""
    for row in (hashes.amin(-1) < _SMALL).nonzero()[:, 0].tolist():
        for column in (hashes[row] < _SMALL).nonzero()[:, 0].tolist():
            token = column if isinstance(ids, int) else int(ids[row, column])
            more = _unit(mix64(keys[row] ^ mix64((token + 1) * _GOLDEN & _WORD)))
            u = (int(hashes[row, column]) + more) * 2.0**-31
            out[row, column] = -math.log1p(-u)


def _column(words: Iterable[int], device: torch.device | str) -> Tensor:
    signed = [w - (1 << 32) if w >= 1 << 31 else w for w in words]
    return torch.tensor(signed, dtype=torch.int32, device=device)[:, None]


def _table(size: int, device: str) -> Tensor:
    """A fixed random word per token id, int32. Longer tables begin with the shorter ones."""
    return _tables(1 << max(size - 1, 1).bit_length(), device)


@functools.lru_cache(maxsize=32)
def _tables(size: int, device: str) -> Tensor:
    x: np.ndarray[tuple[int], np.dtype[np.uint32]] = np.arange(1, size + 1, dtype=np.uint32) * np.uint32(0x9E37_79B9)
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EB_CA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2_AE35)
    return torch.from_numpy((x ^ (x >> np.uint32(16))).view(np.int32)).to(device)
