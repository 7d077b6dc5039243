"""The sampling transform: from a model's logits to the law that is sampled. One function, for target and drafters.

In this order, each row by its own parameters:

1. repetition penalty r, on every id in prompt and output: positive logits / r, others * r   (1909.05858, vLLM)
2. frequency and presence penalty, on ids in the output only: l - count * frequency - presence   (OpenAI, vLLM)
3. logit bias, added
4. temperature, l / T; at T = 0 the rest is skipped and the argmax decides
5. top-k, then top-p of what is left, then min-p (relative to the largest probability)

The output includes the hypothesised tokens of a draft up to the node: `Prefix` carries them. A truncation keeps every
token whose value is at least a cut, so tokens that tie with the last one kept stay too. That makes the kept set a
function of the values alone, the same on every device, whatever order a sort puts ties in.

Ahead of all that, `restrict` takes away what a grammar forbids: no step above brings a logit of -inf back, and the
truncations see only what is left.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor

from specserve.types import Sampling, SessionSpec

_FEW = 64  # candidates tried first for top-p; eight times as many after each miss, the whole vocabulary at last


class Prefix(Sequence[int]):
    """Committed tokens and a drafted path after them, without copying the committed ones."""

    __slots__ = ("committed", "drafted")

    def __init__(self, committed: Sequence[int], drafted: tuple[int, ...] = ()) -> None:
        self.committed, self.drafted = committed, drafted

    def __len__(self) -> int:
        return len(self.committed) + len(self.drafted)

    @overload
    def __getitem__(self, i: int) -> int: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[int]: ...
    def __getitem__(self, i: int | slice) -> int | Sequence[int]:
        return (*self.committed, *self.drafted)[i]


def process(logits: Tensor, specs: Sequence[SessionSpec], histories: Sequence[Sequence[int]]) -> Tensor:
    """Apply the sampling transform.

    Args:
        logits: [N, V], any float type. Never changed; the result may be the same tensor when nothing applies.
        specs: whose parameters each row follows, N.
        histories: all tokens before each row's position, N; `spec.prompt_len` of them are the prompt.
    Returns:
        [N, V] processed logits, not normalised, -inf where the law is 0. fp32, or fp64 for fp64 logits.
    """
    x = _untruncated(logits, specs, histories)
    if any(truncates(spec.sampling) for spec in specs):
        cut = _cut(x, specs, x.topk(_few(x, specs)).values)
        x = x.masked_fill(x < cut, -math.inf)
    return x


def support(
    logits: Tensor, specs: Sequence[SessionSpec], histories: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor | None]:
    """The same law as `process` gives, on few ids where every row is truncated to few.

    Returns:
        values [N, m] (-inf where the law is 0) and ids int64 [N, m]; or `process(...)` [N, V] and None.
    """
    if not all(truncates(spec.sampling) for spec in specs):
        return process(logits, specs, histories), None
    x = _untruncated(logits, specs, histories)
    top, ids = x.topk(_few(x, specs))
    cut = _cut(x, specs, top)
    if _inside(top, cut, x):
        return top.masked_fill_(top < cut, -math.inf), ids
    return x.masked_fill(x < cut, -math.inf), None


def restrict(logits: Tensor, masks: Sequence[tuple[int, Tensor]]) -> Tensor:
    """A copy of the logits with -inf where a grammar forbids the token. NaN stays, and a forbidden +inf becomes one.

    Args:
        logits: [N, V].
        masks: first row and bits of each block of rows, in order, see `Case.masks`. Other rows stay as they are.
    """
    bits = torch.cat([block for _, block in masks]).to(logits.device, torch.int32)
    penalty = torch.nn.functional.embedding(bits, _bits(logits.dtype, logits.device)).flatten(1)[:, : logits.shape[1]]
    if len(penalty) == len(logits):
        return logits + penalty
    x = logits.clone()
    for (first, block), part in zip(masks, penalty.split_with_sizes([len(block) for _, block in masks]), strict=True):
        x[first : first + len(block)] += part
    return x


@functools.lru_cache(maxsize=8)
def _bits(dtype: torch.dtype, device: torch.device) -> Tensor:
    """What to add for the eight bits of a byte, [256, 8]: 0 for a set one, -inf for the others."""
    byte = torch.arange(256)[:, None] >> torch.arange(8)[None, :]
    return torch.where(byte % 2 == 1, 0.0, -math.inf).to(device, dtype)


def truncates(s: Sampling) -> bool:
    """Whether the transform may set probabilities to 0."""
    return s.temperature > 0 and (s.top_k > 0 or s.top_p < 1 or s.min_p > 0)


def _untruncated(logits: Tensor, specs: Sequence[SessionSpec], histories: Sequence[Sequence[int]]) -> Tensor:
    x = logits if logits.dtype is torch.float64 else logits.float()
    distinct = {id(spec.sampling): spec.sampling for spec in specs}.values()
    if any(map(_shifts, distinct)):
        x = _shift(x.clone() if x is logits else x, specs, histories)
    temperatures = {s.temperature or 1.0 for s in distinct}
    if temperatures - {1.0}:
        x = x - x.amax(-1, keepdim=True)  # the largest becomes 0: no temperature overflows
        one = len(temperatures) == 1
        x.div_(temperatures.pop() if one else _column([spec.sampling.temperature or 1.0 for spec in specs], x))
    return x


def _shifts(s: Sampling) -> bool:
    return bool(s.repetition_penalty != 1 or s.presence_penalty or s.frequency_penalty or s.logit_bias)


def _shift(x: Tensor, specs: Sequence[SessionSpec], histories: Sequence[Sequence[int]]) -> Tensor:
    """Penalties and bias, in place."""
    counted: dict[tuple[int, int], tuple[set[int], Counter[int]]] = {}  # rows of one tree share their committed tokens
    for row, (spec, history) in enumerate(zip(specs, histories, strict=True)):
        s = spec.sampling
        if not _shifts(s):
            continue
        prefix = history if isinstance(history, Prefix) else Prefix(history)
        of = (id(prefix.committed), spec.prompt_len)
        if of not in counted:
            counted[of] = set(prefix.committed), Counter(prefix.committed[spec.prompt_len :])
        seen, output = counted[of]
        if s.repetition_penalty != 1:
            ids = torch.tensor(sorted(seen.union(prefix.drafted)), dtype=torch.int64, device=x.device)
            values = x[row, ids]
            x[row, ids] = torch.where(values > 0, values / s.repetition_penalty, values * s.repetition_penalty)
        if s.presence_penalty or s.frequency_penalty:
            counts = output + Counter(prefix.drafted) if prefix.drafted else output
            if counts:
                ids = torch.tensor(list(counts), device=x.device)
                times = torch.tensor(list(counts.values()), dtype=x.dtype, device=x.device)
                x[row, ids] -= s.frequency_penalty * times + s.presence_penalty
        if s.logit_bias:
            ids = torch.tensor(list(s.logit_bias), device=x.device)
            x[row, ids] += torch.tensor(list(s.logit_bias.values()), dtype=x.dtype, device=x.device)
    return x


def _few(x: Tensor, specs: Sequence[SessionSpec]) -> int:
    """How many of the largest values to look at first: more than any top-k, so that a cut shows inside."""
    return min(x.shape[1], max(_FEW, 1 + max((s.sampling.top_k for s in specs if truncates(s.sampling)), default=0)))


def _inside(top: Tensor, cut: Tensor, x: Tensor) -> bool:
    """Whether everything at least the cut is among the largest values `top`."""
    return top.shape[1] == x.shape[1] or bool((top[:, -1:] < cut).all())


def _cut(x: Tensor, specs: Sequence[SessionSpec], top: Tensor) -> Tensor:
    """The smallest value that stays in each row, [N, 1]; -inf where a row is not truncated.

    Args:
        x: [N, V].
        top: the largest values of each row, descending, [N, m].
    """
    off = Sampling()
    samplings = [spec.sampling if truncates(spec.sampling) else off for spec in specs]
    cut = torch.full_like(top[:, :1], -math.inf)
    ks = [s.top_k if 0 < s.top_k < x.shape[1] else 0 for s in samplings]
    if any(ks):
        kth = top.gather(1, torch.tensor([[max(k - 1, 0)] for k in ks], device=x.device))
        cut = torch.where(torch.tensor([[k > 0] for k in ks], device=x.device), kth, cut)
    if any(s.top_p < 1 for s in samplings):
        body = top if any(ks) and _inside(top, cut, x) else x
        if any(ks):
            body = body.masked_fill(body < cut, -math.inf)
        nucleus = _nucleus(x, top, body.logsumexp(-1, keepdim=True), _column([s.top_p for s in samplings], x))
        cut = torch.maximum(cut, nucleus)
    if any(s.min_p > 0 for s in samplings):
        floor = _column([math.log(s.min_p) if s.min_p > 0 else -math.inf for s in samplings], x)
        cut = torch.maximum(cut, top[:, :1] + floor)
    return cut


def _nucleus(x: Tensor, top: Tensor, total: Tensor, top_p: Tensor) -> Tensor:
    """Value of the last token in the smallest set of most probable tokens with mass top_p, [N, 1]; -inf at top_p 1.

    Args:
        x, top: as for `_cut`.
        total: log of the mass that counts as 1, [N, 1].
        top_p: [N, 1].
    """
    mass = (top - total).exp_()
    before = mass.cumsum(-1).sub_(mass)
    last = (before < top_p).sum(-1, keepdim=True).sub_(1).clamp_(min=0)
    cut = top.gather(1, last).masked_fill_(top_p >= 1, -math.inf)
    few = top.shape[1]
    beyond = ((last == few - 1) & (top_p < 1))[:, 0]
    if few < x.shape[1] and bool(beyond.any()):
        rest, more = x[beyond], min(x.shape[1], 8 * few)
        cut[beyond] = _nucleus(rest, rest.topk(more).values, total[beyond], top_p[beyond])
    return cut


def _column(values: list[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]
