"""Attention over the pool without copies of it: query heads that share keys count as further queries.

The stock SDPA code repeats keys and values for every query head of a group when a mask is given and there are several
queries, which is each verification. For 16 sessions of 8 nodes that copy was half of a 138M bf16 forward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "specserve"


def grouped_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """The `attn_implementation` that computes what "sdpa" does.

    Args:
        query: [B, H, q, D]; heads i·H/G to (i + 1)·H/G - 1 attend to key head i.
        key, value: [B, G, kv, D].
        attention_mask: [B, 1, q, kv], True where a query sees a column.
    Returns:
        [B, q, H, D].
    """
    groups, heads = key.shape[1], query.shape[1]
    shared = attention_mask is not None and attention_mask.shape[1] == 1
    if heads == groups or not shared or kwargs.get("position_bias") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)  # type: ignore[no-any-return]
    assert attention_mask is not None
    batch, _, queries, width = query.shape
    seen = torch.nn.functional.scaled_dot_product_attention(
        query.reshape(batch, groups, -1, width),
        key,
        value,
        attn_mask=attention_mask.repeat(1, 1, heads // groups, 1),
        scale=kwargs.get("scaling"),
    )
    return seen.reshape(batch, heads, queries, -1).transpose(1, 2).contiguous(), None


def register() -> str:
    """Make it known to transformers; returns its name."""
    AttentionInterface.register(NAME, grouped_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME
