"""Shared-noise sampling: y = argmax (log p + g) with the noise of (seed, absolute position, token id)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from specserve.types import SessionSpec, TokenLogprobs
from specserve.verify.noise import Purpose, key, log_arrivals
from specserve.verify.transform import process, support


def sample(logits: Tensor, specs: Sequence[SessionSpec], histories: Sequence[Sequence[int]]) -> Tensor:
    """The token of each row: a function of (law, seed, position) alone. At temperature 0 the argmax.

    Args:
        logits: [N, V].
        specs: N.
        histories: committed and hypothesised tokens before each row's position, N.
    Returns:
        int64 [N]. Of exactly equal scores the smallest id wins.
    """
    return best(logits, specs, histories)[1]


def best(
    logits: Tensor,
    specs: Sequence[SessionSpec],
    histories: Sequence[Sequence[int]],
    purpose: Purpose = Purpose.TOKEN,
) -> tuple[Tensor, Tensor]:
    """Scores [N] and ids [N] of the winners. A score is not finite when the row's logits cannot be sampled from."""
    x, ids = scores(logits, specs, histories, purpose)
    top, at = x.max(-1)
    return top, at if ids is None else ids.gather(1, at[:, None])[:, 0]


def top_coupled(logits: Tensor, specs: Sequence[SessionSpec], histories: Sequence[Sequence[int]], k: int) -> Tensor:
    """The k best under the same noise, best first, int64 [N, k]: what a drafter proposes for one position.

    Children from the top k of log q + g meet the target's argmax of log p + g as often as the two laws agree.
    """
    return coupled_candidates(logits, specs, histories, k)[1]


def coupled_candidates(
    logits: Tensor, specs: Sequence[SessionSpec], histories: Sequence[Sequence[int]], k: int
) -> tuple[Tensor, Tensor]:
    """`top_coupled` with its scores: log q + g [N, k] up to a constant per row, and ids int64 [N, k].

    A score of -inf marks an id of probability 0: the law has fewer than k tokens. k is at most 64.
    """
    x, ids = scores(logits, specs, histories)
    top, at = x.topk(k, -1)
    return top, at if ids is None else ids.gather(1, at)


def scores(
    logits: Tensor,
    specs: Sequence[SessionSpec],
    histories: Sequence[Sequence[int]],
    purpose: Purpose = Purpose.TOKEN,
) -> tuple[Tensor, Tensor | None]:
    """log p + g up to a constant per row; at temperature 0 the processed logits, without noise.

    Returns:
        [N, m] and the ids they belong to, int64 [N, m], where every law is truncated to few; else [N, V] and None.
    """
    x, ids = support(logits, specs, histories)
    hot = [i for i, spec in enumerate(specs) if spec.sampling.temperature > 0]
    if not hot:
        return x, ids
    keys = [key(specs[i].sampling.seed, purpose, len(histories[i])) for i in hot]
    race = log_arrivals(keys, x.shape[1] if ids is None else ids, x.device)
    if len(hot) == len(specs):
        return torch.sub(x, race, out=race) if x.dtype is race.dtype else x - race, ids
    x = x.clone() if x is logits else x
    x[hot] -= race
    return x, ids


def logprobs(
    logits: Tensor,
    specs: Sequence[SessionSpec],
    histories: Sequence[Sequence[int]],
    tokens: Sequence[int],
    raw: Tensor | None = None,
) -> list[TokenLogprobs]:
    """Log-probabilities of one token per row under the processed and the raw law; `sampling.logprobs` may not be None.

    At temperature 0 the processed law has penalties and bias only. The top n leave out tokens of probability 0.
    `raw` holds the model's own logits where `logits` have been restricted to a grammar.
    """
    processed = process(logits, specs, histories).log_softmax(-1)
    raw = (logits if raw is None else raw).to(processed.dtype).log_softmax(-1)
    counts = [spec.sampling.logprobs or 0 for spec in specs]
    values, ids = processed.topk(min(max(counts), processed.shape[1]), -1)
    raws = raw.gather(1, ids)
    picked = torch.tensor(tokens, device=logits.device)[:, None]
    own = zip(processed.gather(1, picked)[:, 0].tolist(), raw.gather(1, picked)[:, 0].tolist(), strict=True)
    rows = zip(counts, own, ids.tolist(), values.tolist(), raws.tolist(), strict=True)
    return [
        TokenLogprobs(law, model, tuple(e for e in list(zip(i, v, r, strict=True))[:n] if e[1] > float("-inf")))
        for n, (law, model), i, v, r in rows
    ]
