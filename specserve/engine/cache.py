"""Keys and values of all sessions, in one pool per layer, behind the Cache that stock modelling code expects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache


@dataclass(frozen=True, slots=True)
class LayerShape:
    """Key and value width of one layer: (heads, head_dim) each; they may differ from layer to layer."""

    key: tuple[int, int]
    value: tuple[int, int]


class _PoolView(Cache):  # type: ignore[misc]
    """What a forward pass may ask of a cache besides `update`: nothing, the mask and the positions are given."""

    # Read by transformers' mask code on every forward; constants are cheaper than its per-layer scans.
    is_sliding: Sequence[bool] = ()
    is_linear: Sequence[bool] = ()
    is_dummy: Sequence[bool] = ()
    is_compileable = False

    def __init__(self) -> None:
        super().__init__(layers=[])


class PoolCache(_PoolView):
    """One forward pass over the pool.

    Args:
        keys, values: per layer, [slots, heads, head_dim].
        write: slots of the new tokens, row by row, [B·q].
        read: slots that each row sees, padded, [B·kv]; None when the pools given are already
            [B·kv, heads, head_dim] in reading order, which saves the gather.
    """

    def __init__(self, keys: Sequence[Tensor], values: Sequence[Tensor], write: Tensor, read: Tensor | None) -> None:
        super().__init__()
        self._keys, self._values, self._write, self._read = keys, values, write, read

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Put new keys and values [B, heads, q, head_dim] in; returns all that rows see, [B, heads, kv, head_dim]."""
        return (
            self._swap(self._keys[layer_idx], key_states),
            self._swap(self._values[layer_idx], value_states),
        )

    def _swap(self, pool: Tensor, new: Tensor) -> Tensor:
        heads, width = pool.shape[1], pool.shape[2]
        pool.index_copy_(0, self._write, new.transpose(1, 2).reshape(-1, heads, width))
        seen = pool if self._read is None else pool.index_select(0, self._read)
        return seen.view(new.shape[0], -1, heads, width).transpose(1, 2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1


class ShapeProbe(_PoolView):
    """Learns the width of every layer from one forward pass, instead of guessing config attribute names."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[int, LayerShape] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        shapes = [(int(t.shape[1]), int(t.shape[3])) for t in (key_states, value_states)]
        self._seen[layer_idx] = LayerShape(*shapes)
        return key_states, value_states

    def shapes(self) -> list[LayerShape]:
        """Per layer, in order. Raises ValueError when the model does not keep every layer here."""
        if not self._seen or sorted(self._seen) != list(range(len(self._seen))):
            raise ValueError(f"it caches layers {sorted(self._seen)} only")
        return [self._seen[i] for i in range(len(self._seen))]


class Pools:
    """The tensors: keys and values per layer, [slots + 2, heads, head_dim].

    The two extra slots: `zero` is never written, so padding of the read lists stays finite; `trash` takes
    the writes of padding queries and is never read. A NaN of one session can thus not reach another.
    """

    def __init__(self, slots: int, shapes: Sequence[LayerShape], dtype: torch.dtype, device: torch.device) -> None:
        self.zero, self.trash = slots, slots + 1
        self.keys = [torch.zeros(slots + 2, *shape.key, dtype=dtype, device=device) for shape in shapes]
        self.values = [torch.zeros(slots + 2, *shape.value, dtype=dtype, device=device) for shape in shapes]
        self.slot_bytes = sum(t[0].nbytes for t in (*self.keys, *self.values))
