"""Slots: every one has one owner, promises hold, and sessions keep straight runs where they can."""

from __future__ import annotations

import random

import numpy as np
import pytest

from specserve.engine.slots import Slots, Table
from specserve.errors import Overloaded


def test_a_promise_is_refused_when_the_others_hold_too_much_and_kept_after_they_leave():
    slots = Slots(100)
    first = Table(slots, 50, 10)
    with pytest.raises(Overloaded, match="40 slots unpromised; 41 are needed"):
        Table(slots, 31, 10)
    first.close()
    Table(slots, 90, 10).close()
    assert (slots.used, slots.reserved) == (0, 0)


def test_an_admitted_session_never_runs_out_even_when_no_straight_run_is_left():
    """Three sessions fill the pool; the middle one leaves; its place is too short as a run for the next."""
    slots = Slots(30)
    left, middle, right = Table(slots, 8, 2), Table(slots, 4, 1), Table(slots, 8, 2)
    left.extend(8, 0)
    right.extend(8, 0)
    middle.close()
    scattered = Table(slots, 9, 1)
    scattered.extend(9, 1)
    left.extend(0, 2)
    right.extend(0, 2)
    owners = np.concatenate([table.ids for table in (left, right, scattered)])
    assert sorted(owners) == sorted(slots.owned())
    assert len(set(owners.tolist())) == 30


def test_chains_keep_a_session_straight_and_a_second_branch_breaks_it():
    slots = Slots(64)
    other, table = Table(slots, 10, 4), Table(slots, 20, 4)
    other.extend(3, 0)
    table.extend(5, 4)
    table.commit((0, 1))
    assert table.straight == table.length == 7
    table.extend(1, 4)
    table.commit((2, 3))
    assert table.length == 10
    assert table.straight == 8
    table.truncate(8)
    table.extend(2, 0)
    assert table.straight == table.length == 10


def test_accepting_a_path_moves_no_slot():
    """Zero-copy: the kept tokens stay where they were written; only the others are freed."""
    slots = Slots(64)
    table = Table(slots, 20, 8)
    table.extend(4, 6)
    before = table.ids.copy()
    table.commit((1, 4, 5))
    assert table.ids.tolist() == [*before[:4], *before[[5, 8, 9]]]
    assert slots.used == 7


@pytest.mark.parametrize("seed", range(5))
def test_books_balance_after_any_sequence_of_operations(seed: int):
    rng = random.Random(seed)
    slots, tables = Slots(120), []
    for _ in range(400):
        match rng.choice(["open", "extend", "extend", "extend", "truncate", "close"]):
            case "open":
                try:
                    tables.append(Table(slots, rng.randint(1, 40), 5))
                except Overloaded:
                    assert slots.reserved > 120 - 45
            case "extend" if tables:
                table = rng.choice(tables)
                room = table.capacity - table.length
                nodes = rng.randint(0, min(5, room))
                table.extend(rng.randint(0, room - nodes), nodes)
                table.commit(tuple(sorted(rng.sample(range(nodes), rng.randint(0, nodes)))))
            case "truncate" if tables:
                table = rng.choice(tables)
                table.truncate(rng.randint(0, table.length))
            case "close" if tables:
                tables.pop(rng.randrange(len(tables))).close()
        held = [slot for table in tables for slot in table.ids.tolist()]
        assert sorted(held) == slots.owned().tolist()
        for table in tables:
            ids = table.ids.tolist()
            straight = next((i for i in range(1, len(ids)) if ids[i] != ids[i - 1] + 1), len(ids))
            assert table.straight == straight, "a wrong run would read another session's keys"
    for table in tables:
        table.close()
    assert (slots.used, slots.reserved) == (0, 0)
