"""One ragged batch of trees as arrays: which tokens, where written, what read, who sees whom.

Rows are padded on the left of the queries, so that the last query of every row is real and logits are always
those of the last positions; reads are padded on the right. `pack` takes the padding out again wherever the model
treats every token alike. All integers travel as one array: one copy to the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from specserve.engine.slots import Ids, Table
from specserve.types import Draft

Mask = NDArray[np.bool_]
NO_DRAFT = Draft()


@dataclass(frozen=True, slots=True)
class Row:
    """One session's part of a forward pass.

    Args:
        session: an open session.
        tokens: committed tokens whose keys and values are not in the pool yet; at least one.
        draft: tree that hangs on the last of `tokens`.
        logits: whether the laws after the last token and after every node are wanted; False while a long
            prompt is taken in.
    """

    session: int
    tokens: Sequence[int]
    draft: Draft = NO_DRAFT
    logits: bool = True


@dataclass(frozen=True, slots=True)
class Layout:
    """Arrays of one forward pass: B rows, q queries, kv columns.

    `read` None means: the columns are the slots `run`, in order, so nothing needs gathering.
    `masks` holds [B, 1, q, kv] (True: sees) per sliding window in tokens, 0 for none.
    `keep` are the last query positions whose logits are wanted, `pick` their rows after flattening to
    [B·len(keep)], None when all of them are. `spread` and `places` are of packed layouts: see `pack`.
    """

    tokens: Ids  # [B, q]
    positions: Ids  # [B, q]
    write: Ids  # [B·q]
    read: Ids | None  # [B·kv]
    run: range
    masks: dict[int, Mask]
    keep: Ids
    pick: Ids | None
    spread: Ids | None = None
    places: Ids | None = None


def lay_out(rows: Sequence[Row], tables: Sequence[Table], windows: Sequence[int], zero: int, trash: int) -> Layout:
    """Arrange rows whose tables have just been extended by the rows' tokens and nodes.

    Args:
        zero, trash: the slots that pad reads and writes.
    """
    if len(rows) == 1:
        return _one(rows[0], tables[0], windows)
    batch = len(rows)
    width = max(len(row.tokens) + len(row.draft) for row in rows)
    depth = max(table.length + table.nodes for table in tables)
    tokens = np.zeros((batch, width), dtype=np.int64)
    positions = np.zeros((batch, width), dtype=np.int64)
    write = np.full((batch, width), trash, dtype=np.int64)
    read = np.full((batch, depth), zero, dtype=np.int64)
    masks = {window: np.zeros((batch, 1, width, depth), dtype=np.bool_) for window in windows}
    for i, (row, table) in enumerate(zip(rows, tables, strict=True)):
        used, total = len(row.tokens) + len(row.draft), table.length + table.nodes
        tokens[i, width - used :] = (*row.tokens, *row.draft.tokens)
        where, seen = _row(row, table, windows)
        positions[i, width - used :] = where
        write[i, width - used :] = table.ids[total - used :]
        read[i, :total] = table.ids
        for window, mask in masks.items():
            mask[i, 0, width - used :, :total] = seen[window]
            mask[i, 0, : width - used, 0] = True  # a query that sees nothing would be NaN
    wanted = [1 + len(row.draft) if row.logits else 0 for row in rows]
    most = max(1, *wanted)
    pick = None
    if any(count != most for count in wanted):
        pick = np.concatenate([np.arange((i + 1) * most - n, (i + 1) * most) for i, n in enumerate(wanted)])
    keep = np.arange(width - most, width)
    return Layout(tokens, positions, write.reshape(-1), read.reshape(-1), range(0), masks, keep, pick)


def pack(layout: Layout, trash: int) -> Layout:
    """The same batch with its N tokens in one row, [1, N], so that padding costs in attention only.

    `spread` [B·q] says which token stands in a padded place (the first one where none does), `places` [N] where each
    token stands; `keep` are tokens, and `pick` is not needed.
    """
    batch, width = layout.tokens.shape
    places = np.flatnonzero(layout.write != trash)
    spread = np.zeros(batch * width, dtype=np.int64)
    spread[places] = np.arange(len(places))
    wanted = (np.arange(batch)[:, None] * width + layout.keep).reshape(-1)
    return replace(
        layout,
        tokens=layout.tokens.reshape(1, -1)[:, places],
        positions=layout.positions.reshape(1, -1)[:, places],
        write=layout.write[places],
        keep=spread[wanted if layout.pick is None else wanted[layout.pick]],
        pick=None,
        spread=spread,
        places=places,
    )


def _one(row: Row, table: Table, windows: Sequence[int]) -> Layout:
    """A single row needs no padding, and no gather while its slots are one straight run."""
    used, total = len(row.tokens) + len(row.draft), table.length + table.nodes
    ids = table.ids
    where, seen = _row(row, table, windows)
    straight = table.straight == total
    most = 1 + len(row.draft) if row.logits else 1
    return Layout(
        tokens=np.array([(*row.tokens, *row.draft.tokens)], dtype=np.int64),
        positions=where[None],
        write=ids[total - used :],
        read=None if straight else ids,
        run=range(int(ids[0]), int(ids[0]) + total) if straight else range(0),
        masks={window: mask[None, None] for window, mask in seen.items()},
        keep=np.arange(used - most, used),
        pick=None if row.logits else np.empty(0, dtype=np.int64),
    )


def _row(row: Row, table: Table, windows: Sequence[int]) -> tuple[Ids, dict[int, Mask]]:
    """Positions [q] and masks [q, kv] per window, of one unpadded row.

    A committed token sees all before it; a node sees all committed tokens, its ancestors and itself.
    A window counts distance in positions (depth in the tree), not in columns.
    """
    length, nodes, pending = table.length, table.nodes, len(row.tokens)
    columns = np.arange(length + nodes)
    if nodes:
        columns[length:] = length - 1 + np.array(row.draft.depths())
    where = columns[length - pending :]
    causal = columns[None, :] <= where[:, None]
    if nodes:
        causal[:pending, length:] = False
        causal[pending:, length:] = ancestors(row.draft.parents)
    return where, {w: causal & (where[:, None] - columns[None, :] < w) if w else causal for w in windows}


def ancestors(parents: Sequence[int]) -> Mask:
    """[n, n]: entry (i, j) says whether node j is node i or above it."""
    seen = np.eye(len(parents), dtype=np.bool_)
    for i, parent in enumerate(parents):
        if parent >= 0:
            seen[i] |= seen[parent]
    return seen
