"""How many replicas: pure decisions on built pools."""

import math
from dataclasses import replace

import pytest

from specserve.serving.autoscale import Aims, Decision, Pool, decide

VERIFIERS = Pool(
    "Verifier",
    "verifier",
    Aims(least=1, most=8, sessions=8, queue_s=0.2, occupancy=0.8, cooldown_s=30),
    running=2,
    target=2,
    sessions=12,
)
DRAFTERS = Pool(
    "Drafter-ar",
    "drafter",
    Aims(least=0, most=6, sessions=64, busy=0.7, late=0.1, wait=0.5, cooldown_s=30),
    running=2,
    target=2,
    sessions=12,
    busy=0.5,
    apart=True,
)


def one(pool: Pool, **changes: object) -> Decision:
    return decide([replace(pool, **changes)])[pool.name]


def test_a_pool_whose_signals_are_near_their_aims_stays_as_it_is():
    assert decide([VERIFIERS, DRAFTERS])["Verifier"].replicas == 2
    assert decide([VERIFIERS, DRAFTERS])["Drafter-ar"].replicas == 2


@pytest.mark.parametrize(
    ("signal", "changes", "replicas"),
    [
        ("sessions", {"sessions": 30}, 4),
        ("queue", {"queue_s": 0.3}, 3),
        ("occupancy", {"occupancy": 0.95}, 3),
    ],
)
def test_verifiers_follow_sessions_queue_delay_and_pool_occupancy(signal, changes, replicas):
    decision = one(VERIFIERS, **changes)
    assert (decision.replicas, decision.signal) == (replicas, signal)


@pytest.mark.parametrize(
    ("signal", "changes", "replicas"),
    [
        ("busy", {"busy": 0.9}, 3),
        ("late", {"busy": 0.6, "late": 0.14}, 3),
        ("wait", {"busy": 0.6, "wait": 0.7}, 3),
        ("sessions", {"sessions": 190}, 3),
    ],
)
def test_drafters_follow_their_work_the_late_drafts_and_the_rounds_wait_for_them(signal, changes, replicas):
    decision = one(DRAFTERS, **changes)
    assert (decision.replicas, decision.signal) == (replicas, signal)


def test_drafters_that_are_not_busy_do_not_grow_for_being_late():
    """More replicas of a pool with nothing to do would be as late."""
    assert one(DRAFTERS, busy=0.2, late=1.0, wait=0.9).replicas < 2


def test_drafters_grow_with_the_verifiers_that_are_on_their_way():
    """Twice the verifiers ask for twice the drafts."""
    decisions = decide([replace(VERIFIERS, sessions=32), replace(DRAFTERS, busy=0.6)])
    assert decisions["Verifier"].replicas == 4
    assert decisions["Drafter-ar"].replicas == math.ceil(2 * 0.6 * 2 / 0.7) == 4


def test_one_signal_asks_for_at_most_twice_the_replicas():
    assert one(VERIFIERS, queue_s=30.0).replicas == 4


@pytest.mark.parametrize("pool", [VERIFIERS, DRAFTERS], ids=["verifier", "drafter"])
def test_bounds_hold_whatever_is_asked_for(pool):
    assert one(pool, sessions=1e6).replicas == pool.aims.most
    assert one(pool, sessions=0.0, busy=0.0).replicas == pool.aims.least


def test_a_pool_shrinks_only_with_room_to_spare():
    """7.9 sessions fit one replica of 8, but the next one would not: hysteresis 0.2."""
    assert one(VERIFIERS, sessions=7.9).replicas == 2
    assert one(VERIFIERS, sessions=6.5).replicas == 1


def test_after_growing_a_pool_does_not_shrink_before_the_cooldown_is_over():
    assert one(VERIFIERS, sessions=1, grew_s=29.0) == Decision(
        2, "cooldown", "grew 29 s ago; 1.0 sessions, 8 a replica"
    )
    assert one(VERIFIERS, sessions=1, grew_s=31.0).replicas == 1


def test_drafters_go_to_nothing_without_sessions_and_come_back_with_the_first():
    """What the other signals say then is of the past."""
    assert one(DRAFTERS, sessions=0.0, busy=0.9, late=1.0).replicas == 0
    assert one(DRAFTERS, running=0, target=0, sessions=1.0, busy=0.0).replicas == 1


def test_a_pool_with_one_session_is_not_taken_away():
    assert one(DRAFTERS, sessions=0.1, busy=0.0).replicas == 1


def test_drafters_do_not_grow_while_a_verifier_waits_for_a_node():
    pools = [replace(VERIFIERS, running=1), replace(DRAFTERS, busy=1.0, apart=False)]
    decision = decide(pools, short_s=5)["Drafter-ar"]
    assert (decision.replicas, decision.signal) == (2, "verifiers-first")


def test_drafters_do_not_take_the_node_that_a_verifier_is_about_to_ask_for():
    pools = [replace(VERIFIERS, sessions=30), replace(DRAFTERS, running=0, target=0, busy=0.0, apart=False)]
    assert decide(pools)["Drafter-ar"].replicas == 0


def test_drafters_make_room_one_by_one_when_a_verifier_has_waited_for_long():
    pools = [replace(VERIFIERS, running=1), replace(DRAFTERS, apart=False)]
    assert decide(pools, short_s=31)["Drafter-ar"].replicas == 1
    assert decide([pools[0], replace(pools[1], shrank_s=10.0)], short_s=41)["Drafter-ar"].replicas == 2
    assert decide([pools[0], replace(pools[1], running=1, target=1)], short_s=90)["Drafter-ar"].replicas == 1


def test_drafters_on_nodes_of_their_own_grow_whatever_verifiers_wait_for():
    pools = [replace(VERIFIERS, running=1), replace(DRAFTERS, busy=1.0)]
    assert decide(pools, short_s=500)["Drafter-ar"].replicas > 2


def test_every_decision_says_why():
    assert one(VERIFIERS, queue_s=0.3).reason == "0.3 s before a step, aim 0.2"
