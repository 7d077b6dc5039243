"""The forward pass of a two-stream XLNet (1906.08237, section 2.3), on content and query rows alike.

A content row stands for a token and leaves a key and a value in every layer; a query row stands for a position, knows
nothing of its token, and gives logits. Keys are held in order of rank, so that what a row may see is just a number:
a given token sees all given ones, a written one those of its rank and below, a query those below its rank. Nothing
that a content row sees ever changes, hence its keys can be kept from pass to pass. The weights are those of a stock
`XLNetLMHeadModel`, whose own forward (every row of an L × L mask, `perm_mask` and `target_mapping`) is the slow oracle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Rows:
    """One pass over B sequences: `content` rows first, then query rows. Padded rows see one key and are dropped.

    Args:
        ids: tokens of the content rows, int64 [B, A].
        positions: of all rows, int64 [B, A + Q].
        seen: how many of the first ranks each row sees, at least 1, int64 [B, A + Q].
        held: ranks whose keys are in the cache already, int64 [B]; the content rows follow in rank.
        counts: content rows that are no padding, int64 [B].
    """

    ids: Tensor
    positions: Tensor
    seen: Tensor
    held: Tensor
    counts: Tensor


class Cache:
    """Keys and values by rank: for each layer [seats, heads, capacity + 1, head_dim]; the last one takes padding."""

    def __init__(self, config: Any, seats: int, capacity: int, like: Tensor) -> None:
        shape = (seats, config.n_head, capacity + 1, config.d_head)
        self.capacity = capacity
        self.keys = [like.new_zeros(shape) for _ in range(config.n_layer)]
        self.values = [like.new_zeros(shape) for _ in range(config.n_layer)]
        self.positions = torch.zeros(seats, capacity + 1, dtype=torch.int64, device=like.device)


class TwoStream(nn.Module):
    """Logits of query rows, by the weights of `model`.

    Args:
        model: a stock `XLNetLMHeadModel`.
        context: most positions of a sequence.
    """

    def __init__(self, model: Any, context: int) -> None:
        super().__init__()
        self.model, self.context = model, context
        distances = torch.arange(context - 1, -context, -1, dtype=torch.float64)  # of column c: context - 1 - c
        if model.config.clamp_len > 0:
            distances = distances.clamp(-model.config.clamp_len, model.config.clamp_len)
        width = model.config.d_model
        angles = distances[:, None] / 10_000 ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
        waves = torch.cat([angles.sin(), angles.cos()], -1)
        self._waves: Tensor
        self.register_buffer("_waves", waves.to(model.device, model.dtype), persistent=False)
        self._far: list[Tensor] | None = None  # W_r · wave by layer, once the weights are frozen

    def freeze(self) -> TwoStream:
        """The weights will not change any more: keep what depends on them alone."""
        self.model.eval().requires_grad_(False)
        self._far = [_heads(layer.rel_attn.r, self._waves) for layer in self.model.transformer.layer]
        return self

    def forward(self, rows: Rows, cache: Cache | None = None, seats: Tensor | None = None) -> Tensor:
        """One pass; content rows leave their keys in the cache.

        Args:
            cache, seats: where each sequence's keys are held, int64 [B]; None: in this pass alone (`held` is 0).
        Returns:
            [B, Q, V].
        """
        transformer = self.model.transformer
        content = rows.ids.shape[1]
        queries = rows.positions.shape[1] - content
        mask = transformer.mask_emb.expand(len(rows.ids), queries, -1)
        h = torch.cat([transformer.word_embedding(rows.ids), mask], 1)
        place = _Keys(rows, cache, seats)
        relative = rows.positions[:, :, None] - place.positions[:, None, :]  # [B, A + Q, S]
        span = int(relative.abs().max()) + 1
        near = slice(self.context - span, self.context + span - 1)
        column = (span - 1 - relative)[:, None]  # [B, 1, A + Q, S]
        hidden = (torch.arange(column.shape[-1], device=h.device) >= rows.seen[:, :, None])[:, None]
        last = len(transformer.layer) - 1
        for i, layer in enumerate(transformer.layer):
            keys, values = place.put(i, *_keys_and_values(layer.rel_attn, h[:, :content]))
            if i == last:  # nobody reads the content rows of the last layer
                h, column, hidden = h[:, content:], column[:, :, content:], hidden[:, :, content:]
            far = _heads(layer.rel_attn.r, self._waves[near]) if self._far is None else self._far[i][:, near]
            h = layer.ff(_attend(layer.rel_attn, h, keys, values, far, column, hidden))
        logits: Tensor = self.model.lm_loss(h)
        return logits


class _Keys:
    """Where the keys of one pass go, and where all keys of its sequences are."""

    def __init__(self, rows: Rows, cache: Cache | None, seats: Tensor | None) -> None:
        content = rows.ids.shape[1]
        self._cache = cache
        self.positions = rows.positions[:, :content]
        if cache is None:
            return
        assert seats is not None
        step = torch.arange(content, device=seats.device)[None]
        rank = torch.where(step < rows.counts[:, None], rows.held[:, None] + step, cache.capacity)
        self._longest = int((rows.held + rows.counts).max())
        self._seats, self._rank = seats, rank
        first, last = int(seats[0]), int(seats[-1])
        # Neighbouring seats are read without a copy.
        whole = last - first + 1 == len(seats) and bool((seats.diff() == 1).all())
        self._read: slice | Tensor = slice(first, last + 1) if whole else seats
        cache.positions[seats[:, None], rank] = self.positions
        self.positions = cache.positions[self._read, : self._longest]

    def put(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Take in what the content rows leave, [B, heads, A, head_dim]; give what their sequences have, S for A."""
        if self._cache is None:
            return keys, values
        pools = self._cache.keys[layer], self._cache.values[layer]
        heads = torch.arange(keys.shape[1], device=keys.device)[None, :, None]
        for pool, new in zip(pools, (keys, values), strict=True):
            pool[self._seats[:, None, None], heads, self._rank[:, None]] = new
        return pools[0][self._read][:, :, : self._longest], pools[1][self._read][:, :, : self._longest]


def _heads(weight: Tensor, h: Tensor) -> Tensor:
    """[B, N, D] by a weight [D, heads, head_dim] to [B, heads, N, head_dim]."""
    heads, width = weight.shape[1:]
    return (h @ weight.flatten(1)).view(*h.shape[:-1], heads, width).transpose(-3, -2)


def _keys_and_values(attention: Any, h: Tensor) -> tuple[Tensor, Tensor]:
    return _heads(attention.k, h), _heads(attention.v, h)


def _attend(
    attention: Any, h: Tensor, keys: Tensor, values: Tensor, far: Tensor, column: Tensor, hidden: Tensor
) -> Tensor:
    """Relative attention (1901.02860, section 3.3), residual and norm.

    score(i, j) = ((q_i + r_w) · k_j + (q_i + r_r) · W_r wave(position_i - position_j)) / √head_dim

    Args:
        h: [B, R, D].
        keys, values: [B, heads, S, head_dim].
        far: W_r · wave of the distances, [heads, 2 · span - 1, head_dim].
        column: which of them belongs to row and key, int64 [B, 1, R, S].
        hidden: keys that a row does not see, [B, 1, R, S].
    """
    q = _heads(attention.q, h)
    by_distance = (q + attention.r_r_bias[:, None]) @ far.transpose(-1, -2)
    scores = (q + attention.r_w_bias[:, None]) @ keys.transpose(-1, -2)
    scores = scores + by_distance.gather(-1, column.expand(-1, scores.shape[1], -1, -1))
    weights = (scores * attention.scale).masked_fill(hidden, float("-inf")).softmax(-1)
    out = (weights.to(values.dtype) @ values).transpose(1, 2).flatten(2) @ attention.o.flatten(1).T
    normed: Tensor = attention.layer_norm(out + h)
    return normed
