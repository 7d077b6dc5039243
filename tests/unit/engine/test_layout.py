"""Who sees whom, against the definition written out slowly."""

from __future__ import annotations

import random

import numpy as np
import pytest

from specserve.engine.layout import Layout, Row, ancestors, lay_out, pack
from specserve.engine.slots import Slots, Table
from specserve.types import Draft

ZERO, TRASH = 200, 201


def random_tree(rng: random.Random, nodes: int) -> Draft:
    return Draft(tuple(rng.randrange(50) for _ in range(nodes)), tuple(rng.randint(-1, i - 1) for i in range(nodes)))


def sees(row: Row, held: int, query: int, column: int, window: int) -> bool:
    """The definition. `query` counts the row's pending tokens and nodes, `column` all its tokens and nodes."""
    pending, length = len(row.tokens), held + len(row.tokens)
    depths = row.draft.depths()

    def position(i: int) -> int:
        return i if i < length else length - 1 + depths[i - length]

    at = held + query
    if window and position(at) - position(column) >= window:
        return False
    if query < pending:
        return column <= at
    return column < length or column - length in row.draft.path(query - pending)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("seed", range(8))
def test_masks_positions_and_slots_equal_their_definition(seed: int, rows: int):
    rng = random.Random(seed)
    slots = Slots(ZERO)
    batch, tables, held = [], [], []
    for i in range(rows):
        table = Table(slots, 30, 8)
        table.extend(rng.randint(0, 9), 0)
        row = Row(i, [rng.randrange(50) for _ in range(rng.randint(1, 5))], random_tree(rng, rng.randint(0, 6)))
        held.append(table.length)
        table.extend(len(row.tokens), len(row.draft))
        batch.append(row)
        tables.append(table)
    layout = lay_out(batch, tables, (0, 4), ZERO, TRASH)
    width = layout.tokens.shape[1]
    picked = np.tile(np.arange(width), (rows, 1))[:, layout.keep].reshape(-1)
    picked = picked if layout.pick is None else picked[layout.pick]
    for i, (row, table) in enumerate(zip(batch, tables, strict=True)):
        used, total = len(row.tokens) + len(row.draft), len(table.ids)
        real = slice(width - used, width)
        assert layout.tokens[i, real].tolist() == [*row.tokens, *row.draft.tokens]
        depths = [held[i] + len(row.tokens) - 1 + d for d in row.draft.depths()]
        assert layout.positions[i, real].tolist() == [*range(held[i], held[i] + len(row.tokens)), *depths]
        assert layout.write.reshape(rows, -1)[i, real].tolist() == table.ids[total - used :].tolist()
        assert reads(layout, i)[:total] == table.ids.tolist()
        for window, mask in layout.masks.items():
            want = [[sees(row, held[i], q, c, window) for c in range(total)] for q in range(used)]
            assert mask[i, 0, real, :total].tolist() == want
            assert not mask[i, 0, real, total:].any(), "a real query sees padding"
            assert mask[i, 0].any(-1).all(), "a query that sees nothing is NaN"
        wanted = 1 + len(row.draft)
        assert picked[:wanted].tolist() == list(range(width - wanted, width))
        picked = picked[wanted:]
    assert len(picked) == 0


def reads(layout: Layout, row: int) -> list[int]:
    if layout.read is None:
        return list(layout.run)
    return layout.read.reshape(layout.tokens.shape[0], -1)[row].tolist()


def test_padding_reads_zeros_and_writes_to_trash():
    """Else a NaN of one session could enter another through a masked column: 0 · NaN is NaN."""
    slots = Slots(ZERO)
    tables = [Table(slots, 10, 1), Table(slots, 10, 1)]
    tables[0].extend(6, 0)
    tables[1].extend(2, 0)
    layout = lay_out([Row(0, [1] * 6), Row(1, [1, 2])], tables, (0,), ZERO, TRASH)
    assert reads(layout, 1)[2:] == [ZERO] * 4
    assert layout.write.reshape(2, 6)[1, :4].tolist() == [TRASH] * 4


def test_ancestors_of_a_tree():
    assert ancestors((-1, 0, -1, 2, 0)).tolist() == [
        [True, False, False, False, False],
        [True, True, False, False, False],
        [False, False, True, False, False],
        [False, False, True, True, False],
        [True, False, False, False, True],
    ]


@pytest.mark.parametrize("seed", range(8))
def test_a_packed_batch_holds_every_token_once_and_finds_its_padded_place(seed: int):
    rng = random.Random(seed)
    slots = Slots(ZERO)
    batch, tables = [], []
    for i in range(4):
        table = Table(slots, 30, 8)
        row = Row(i, [rng.randrange(50) for _ in range(rng.randint(1, 5))], random_tree(rng, rng.randint(0, 6)), i != 2)
        table.extend(len(row.tokens), len(row.draft))
        batch.append(row)
        tables.append(table)
    padded = lay_out(batch, tables, (0,), ZERO, TRASH)
    packed = pack(padded, TRASH)
    assert packed.places is not None
    assert packed.spread is not None
    assert packed.tokens.tolist() == [[token for row in batch for token in (*row.tokens, *row.draft.tokens)]]
    assert packed.positions[0].tolist() == padded.positions.reshape(-1)[packed.places].tolist()
    assert TRASH not in packed.write
    assert packed.spread[packed.places].tolist() == list(range(packed.tokens.shape[1]))
    ends = np.cumsum([len(row.tokens) + len(row.draft) for row in batch])
    wanted = [range(end - 1 - len(row.draft), end) for row, end in zip(batch, ends, strict=True) if row.logits]
    assert packed.keep.tolist() == [i for span in wanted for i in span]
