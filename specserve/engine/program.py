"""The stock forward pass, traced once so that a step does not pay for its Python.

transformers spends about 0.15 ms of Python per layer and call. `torch.jit.trace` records the same aten calls
in the same order; shapes stay symbolic, so two traces (one query per row, several) and their gather-free
twins serve every batch. `selfcheck` compares each with the eager pass at start.
"""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit._fuser import optimized_execution

from specserve.engine import attention
from specserve.engine.cache import PoolCache, Pools
from specserve.engine.hidden import reading

Result = tuple[Tensor, ...]

# Mixtures of experts loop over the experts that were hit: control flow that a trace would freeze.
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts")


class Program:
    """Runs the model over the pool.

    Args:
        model: the stock model.
        pools: keys and values.
        windows: per mask that the model takes, its name in the dict of masks and its window in tokens
            (0: none); a single mask has the name "".
        trace: whether to trace; never done for mixtures of experts.
        hidden: whether passes return the last hidden states too.
    """

    def __init__(
        self, model: Any, pools: Pools, windows: Sequence[tuple[str, int]], *, trace: bool, hidden: bool = False
    ) -> None:
        self._pools = pools
        self._layers = len(pools.keys)
        self._forward = _Forward(model, self._layers, [name for name, _ in windows], hidden)
        self.windows = [window for _, window in windows]
        self._additive = model.config._attn_implementation == "eager"
        self._dtype = model.dtype
        self.packs: bool = model.config._attn_implementation == attention.NAME
        self.traced = trace and not _has_experts(model.config)
        self._traces: dict[tuple[bool, bool, bool], Callable[..., Result]] = {}

    def __call__(
        self,
        tokens: Tensor,
        positions: Tensor,
        write: Tensor,
        read: Tensor | None,
        masks: dict[int, Tensor],
        keep: Tensor,
        keys: Sequence[Tensor] | None = None,
        values: Sequence[Tensor] | None = None,
        packing: tuple[Tensor, Tensor] | None = None,
    ) -> Result:
        """One pass. Without `keys` and `values` it works on the whole pool.

        Args:
            tokens, positions: [B, q].
            write: [B·q], read: [B·kv] or None (see PoolCache).
            masks: [B, 1, q, kv] per window, True where a query sees a column.
            keep: query positions whose logits are wanted, [n].
            packing: `spread` and `places` of a packed layout (see layout.pack); tokens are [1, N] then.
        Returns:
            logits [B, n, V], in the model's dtype; and what the unembedding read, [B, n, d], where asked for.
        """
        keys = self._pools.keys if keys is None else keys
        values = self._pools.values if values is None else values
        given = [masks[window] for window in self.windows]
        unused = write
        spread, places = (unused, unused) if packing is None else packing
        inputs = (
            *(tokens, positions, write, unused if read is None else read, keep, spread, places),
            *(*given, *keys, *values),
        )
        gathers, packed = read is not None, packing is not None
        if not self.traced:
            result: Result = self._forward.bind(gathers, packed)(*inputs)
            return result
        kind = (tokens.shape[1] == 1, gathers, packed)
        trace = self._traces.get(kind)
        if trace is None:
            trace = self._traces[kind] = _trace(self._forward.bind(gathers, packed), inputs)
        with optimized_execution(False):  # else the second call of each kind compiles: 0.2 s for 14 layers, to gain 1 %
            return trace(*inputs)

    def mask(self, seen: Tensor) -> Tensor:
        """A boolean mask as the model's attention takes it: as it is (SDPA) or additive (eager)."""
        if not self._additive:
            return seen
        least = torch.finfo(self._dtype).min
        return torch.zeros(seen.shape, dtype=self._dtype, device=seen.device).masked_fill_(~seen, least)


class _Forward(nn.Module):
    """The model as a function of tensors alone."""

    def __init__(self, model: Any, layers: int, masks: Sequence[str], hidden: bool) -> None:
        super().__init__()
        self.model, self._hidden = model, hidden
        self._layers, self._masks, self._gather, self._packed = layers, list(masks), True, False
        accepted = inspect.signature(model.forward).parameters
        self._keeps = "logits_to_keep" in accepted

    def bind(self, gather: bool, packed: bool) -> _Forward:
        """Set whether the next pass gathers its reads, and whether its tokens are packed."""
        self._gather, self._packed = gather, packed
        return self

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        write: Tensor,
        read: Tensor,
        keep: Tensor,
        spread: Tensor,
        places: Tensor,
        *rest: Tensor,
    ) -> Result:
        masks, pools = rest[: len(self._masks)], rest[len(self._masks) :]
        cache = PoolCache(pools[: self._layers], pools[self._layers :], write, read if self._gather else None)
        kwargs: dict[str, Any] = {"logits_to_keep": keep} if self._keeps else {}
        with contextlib.ExitStack() as stack:
            stack.enter_context(attention.packing((spread, places) if self._packed else None))
            seen = stack.enter_context(reading(self.model)) if self._hidden else []
            logits: Tensor = self.model(
                input_ids=tokens,
                position_ids=positions,
                attention_mask=masks[0] if self._masks == [""] else dict(zip(self._masks, masks, strict=True)),
                past_key_values=cache,
                use_cache=True,
                **kwargs,
            ).logits
        if not self._keeps:
            logits, seen = logits.index_select(1, keep), [states.index_select(1, keep) for states in seen]
        return logits, *seen


def _trace(forward: _Forward, inputs: tuple[Tensor, ...]) -> Callable[..., Result]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns of every shape that Python looks at; selfcheck decides
        # Of a function: of a module every layer would be compiled first, which takes half of the time.
        traced: Callable[..., Result] = torch.jit.trace(  # type: ignore[no-untyped-call]
            lambda *tensors: forward(*tensors), inputs, check_trace=False
        )
    return traced


def _has_experts(config: Any) -> bool:
    text = config.get_text_config(decoder=True)
    return any((getattr(text, name, None) or 0) > 1 for name in _EXPERTS)
