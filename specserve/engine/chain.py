"""Decoding one token per session and step, with everything that can be known beforehand made beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from specserve.engine.cache import Pools
from specserve.engine.slots import Table

if TYPE_CHECKING:
    from specserve.engine.program import Program


class Chain:
    """A dense workspace for up to `steps` tokens after what each session holds.

    Keys and values are gathered once, not once per step: [B·columns, heads, head_dim], column c of a row
    being position c. A single session on a straight run of slots works in the pool itself, without any copy.
    Leaving the `with` block moves the new tokens' keys and values to the pool; the sessions then hold them.

    Args:
        steps: at least as many as will be made; 0 prepares nothing.
    """

    def __init__(self, program: Program, pools: Pools, tables: Sequence[Table], steps: int, context_len: int) -> None:
        self._program, self._pools, self._tables = program, pools, tables
        self._held = np.array([table.length for table in tables])
        self._done = 0
        self._dense = False
        if steps == 0:
            return
        columns = int(self._held.max()) + steps
        for table in tables:
            table.extend(steps, 0)
        with torch.inference_mode():
            self._dense = len(tables) > 1 or tables[0].straight < tables[0].length
            self._fill(columns)
            self._lay_out(columns, steps, context_len)

    def step(self, tokens: Tensor) -> Tensor:
        """Take the next token of every session, [B]. Returns the laws after them, [B, V], in the model's dtype."""
        i, self._done = self._done, self._done + 1
        with torch.inference_mode():
            masks = {window: mask[i] for window, mask in self._masks.items()}
            logits, *_ = self._program(
                tokens[:, None], self._positions[i], self._write[i], None, masks, self._keep, self._keys, self._values
            )
            return logits[:, 0]

    def __enter__(self) -> Chain:
        return self

    def __exit__(self, *exc: object) -> None:
        """Let the sessions hold the tokens of the steps that were made."""
        with torch.inference_mode():
            if self._dense and self._done:
                here = self._write[: self._done].reshape(-1)
                ids = [
                    table.ids[held : held + self._done] for table, held in zip(self._tables, self._held, strict=True)
                ]
                there = torch.from_numpy(np.stack(ids, axis=1).reshape(-1)).to(here.device)
                for pool, work in zip(self._pools.keys + self._pools.values, self._keys + self._values, strict=True):
                    pool.index_copy_(0, there, work.index_select(0, here))
        for table, held in zip(self._tables, self._held, strict=True):
            table.truncate(int(held) + self._done)

    def _fill(self, columns: int) -> None:
        pools = self._pools
        if not self._dense:
            start, held = int(self._tables[0].ids[0]), int(self._held[0])
            self._keys = [pool[start : start + columns] for pool in pools.keys]
            self._values = [pool[start : start + columns] for pool in pools.values]
            for work in self._keys + self._values:
                work[held:].zero_()  # masked columns still meet a weight of 0, and 0 · NaN is NaN
            return
        read = np.full((len(self._tables), columns), pools.zero)
        for row, table, held in zip(read, self._tables, self._held, strict=True):
            row[:held] = table.ids[:held]
        ids = torch.from_numpy(read.reshape(-1)).to(pools.keys[0].device)
        self._keys = [pool.index_select(0, ids) for pool in pools.keys]
        self._values = [pool.index_select(0, ids) for pool in pools.values]

    def _lay_out(self, columns: int, steps: int, context_len: int) -> None:
        batch, device = len(self._tables), self._pools.keys[0].device
        where = self._held[None] + np.arange(steps)[:, None]
        write = where + np.arange(batch)[None] * columns
        # A row may run past the context while another still drafts; its tokens are not used then.
        positions = np.minimum(where, context_len - 1)
        sent = torch.from_numpy(np.concatenate([positions.reshape(-1), write.reshape(-1), [0]])).to(device)
        self._positions = sent[: steps * batch].view(steps, batch, 1)
        self._write = sent[steps * batch : -1].view(steps, batch)
        self._keep = sent[-1:]
        column = np.arange(columns)
        self._masks = {}
        for window in self._program.windows:
            seen = column <= where[..., None]
            if window:
                seen &= where[..., None] - column < window
            self._masks[window] = self._program.mask(torch.from_numpy(seen[:, :, None, None]).to(device))
