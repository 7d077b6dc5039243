"""Attention over the pool: no copy of keys per query head, and padding nowhere else in the model.

The stock SDPA code repeats keys and values for every query head of a group when a mask is given and there are several
queries, which is each verification. For 16 sessions of 8 nodes that copy was half of a 138M bf16 forward pass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "specserve"

_packing: ContextVar[tuple[Tensor, Tensor] | None] = ContextVar("packing", default=None)


def register() -> str:
    """Make `attend` known to transformers as an `attn_implementation`; returns its name."""
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME


@contextlib.contextmanager
def packing(indices: tuple[Tensor, Tensor] | None) -> Iterator[None]:
    """Within: the model's tokens are packed by these `spread` and `places` (see layout.pack); None: they are not."""
    token = _packing.set(indices)
    try:
        yield
    finally:
        _packing.reset(token)


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """What "sdpa" computes.

    Args:
        query: [B, H, q, D]; heads i·H/G to (i + 1)·H/G - 1 attend to key head i. Packed: [1, H, N, D].
        key, value: [B, G, kv, D]. Packed: [1, G, B·kv, D].
        attention_mask: [B, 1, q, kv], True where a query sees a column.
    Returns:
        [B, q, H, D]. Packed: [1, N, H, D].
    """
    if attention_mask is None or kwargs.get("position_bias") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)  # type: ignore[no-any-return]
    indices, scale = _packing.get(), kwargs.get("scaling")
    if indices is None:
        return _grouped(query, key, value, attention_mask, scale), None
    spread, places = indices
    batch = attention_mask.shape[0]
    query = _rows(query.index_select(2, spread), batch)
    seen = _grouped(query, _rows(key, batch), _rows(value, batch), attention_mask, scale)
    return seen.flatten(0, 1).index_select(0, places)[None], None


def _rows(packed: Tensor, batch: int) -> Tensor:
    """[1, H, B·n, D] as [B, H, n, D]."""
    _, heads, _, width = packed.shape
    return packed.view(heads, batch, -1, width).transpose(0, 1)


def _grouped(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float | None) -> Tensor:
    """Query heads that share keys count as further queries of one head."""
    batch, heads, queries, width = query.shape
    groups = key.shape[1]
    query = query.reshape(batch, groups, -1, width)
    mask = mask.repeat(1, 1, heads // groups, 1)
    seen = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    return seen.reshape(batch, heads, queries, -1).transpose(1, 2).contiguous()
