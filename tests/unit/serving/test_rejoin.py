"""Rejoin: a step waits for sessions that will be back soon, no longer than that can pay, and for nobody else."""

from specserve.serving.rejoin import Rejoin

STEP = 0.020


def settled(away_s: float, rounds: int = 100) -> tuple[Rejoin, float]:
    """Two sessions that came back `away_s` after their replies, many times. Now: both have just been answered."""
    rejoin, now = Rejoin(), 0.0
    for _ in range(rounds):
        rejoin.stepped(STEP)
        now += STEP
        rejoin.answered(1, now)
        rejoin.answered(2, now)
        now += away_s
        rejoin.back(1, now)
        rejoin.back(2, now)
    rejoin.stepped(STEP)
    now += STEP
    rejoin.answered(1, now)
    rejoin.answered(2, now)
    return rejoin, now


def test_a_step_waits_for_sessions_that_come_back_sooner_than_a_step_takes():
    rejoin, now = settled(away_s=0.003)
    assert 0.003 < rejoin.wait(now) <= 2 * 0.003


def test_the_wait_ends_with_the_last_one_back():
    rejoin, now = settled(away_s=0.003)
    rejoin.back(1, now + 0.002)
    assert rejoin.wait(now + 0.002) > 0
    rejoin.back(2, now + 0.003)
    assert rejoin.wait(now + 0.003) == 0


def test_nobody_waits_for_a_session_that_is_gone():
    rejoin, now = settled(away_s=0.003)
    rejoin.back(1, now + 0.002)
    rejoin.gone(2)
    assert rejoin.wait(now + 0.002) == 0


def test_the_wait_is_never_longer_than_a_step():
    rejoin, now = settled(away_s=0.9 * STEP)
    assert rejoin.wait(now) <= 1.0001 * STEP


def test_nobody_waits_for_sessions_that_are_away_for_longer_than_a_step_takes():
    rejoin, now = settled(away_s=0.050)
    assert rejoin.wait(now) == 0


def test_a_step_ends_the_wait_for_those_who_missed_it():
    rejoin, now = settled(away_s=0.003)
    rejoin.stepped(STEP)
    assert rejoin.wait(now + STEP) == 0


def test_a_hiccup_does_not_make_long_waits_worth_their_while():
    rejoin, now = settled(away_s=1.5 * STEP)
    rejoin.stepped(100 * STEP)
    rejoin.answered(1, now)
    assert rejoin.wait(now) == 0
