"""The loss of heads, in log space and bounded memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from specserve.draft.heads.model import Heads


class _TokenLogProb(torch.autograd.Function):
    """log softmax(W z)[x]: keeps W[x] - E[W], [N, d], for its gradient, and no law."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, unembedding: Tensor, tokens: Tensor) -> Tensor:
        logits = (states.to(unembedding.dtype) @ unembedding.T).float()
        seen = tokens >= 0
        x = tokens.clamp(min=0)[:, None]
        top = logits.amax(-1, keepdim=True)
        chosen = logits.gather(1, x) - top
        p = logits.sub_(top).exp_()
        total = p.sum(-1, keepdim=True)
        mean = p.div_(total).to(unembedding.dtype) @ unembedding
        ctx.save_for_backward((unembedding[x[:, 0]].float() - mean) * seen[:, None])
        return (chosen - total.log())[:, 0] * seen

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return grads[0][:, None] * slope, None, None


def log_factors(heads: Heads, hidden: Tensor, unembedding: Tensor, tokens: Tensor) -> Tensor:
    """log p_α^s(x_s) of known tokens, factor by factor: a law [N, m] is held at a time, never all n·r.

    Peak memory: two laws and 3·N·n·r·d numbers (1,024 positions, n = r = 8, d = 384, m = 2,048: 0.33 GB).

    Args:
        hidden: [N, d].
        unembedding: rows of W_U that can be drafted, [m, d].
        tokens: columns of the next n tokens, [N, n]; -1 for one that is not among them: it counts as unknown.
    Returns:
        [N, n, r].
    """
    states = heads.states(hidden)
    found = [
        torch.stack([_log_prob(z, unembedding, tokens[:, s]) for z in terms], -1) for s, terms in enumerate(states)
    ]
    return torch.stack(found, 1)


def _log_prob(states: Tensor, unembedding: Tensor, tokens: Tensor) -> Tensor:
    value: Tensor = _TokenLogProb.apply(states, unembedding, tokens)  # type: ignore[no-untyped-call]
    return value


def heads_loss(heads: Heads, hidden: Tensor, unembedding: Tensor, tokens: Tensor, balance: float) -> Tensor:
    """-(1/n) log Σ_α w_α Π_s p_α^s(x_s) in nats per token, and λ·r·Σ_α (mean w_α)² that keeps every term in use."""
    log_w = heads.weights(hidden)
    joint = (log_w + log_factors(heads, hidden, unembedding, tokens).sum(1)).logsumexp(-1)
    load = log_w.exp().mean(0)
    return -joint.mean() / heads.shape.tokens + balance * heads.shape.rank * load.square().sum()
