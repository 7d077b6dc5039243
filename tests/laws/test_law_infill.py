"""Infilling writes exactly the model's joint law, however it drafts, and never takes more passes than tokens.

V = 3 words and at most 4 hidden positions; every draft, coin and recovered token is enumerated. Nothing is sampled.
"""

import numpy as np
import pytest
from infilling import GAPS, Law, error, joint

from specserve.filling import Filling
from specserve.infill import rounds

EXACT, KILLED = 1e-10, 1e-3
WAYS = [("none", 1), ("self", 2), ("self", 4), ("ngram", 1), ("ngram", 3)]


@pytest.mark.parametrize("gaps", GAPS)
@pytest.mark.parametrize(("drafter", "k"), WAYS)
def test_the_joint_law_is_the_model_s(gaps, drafter, k):
    truth, law = joint(GAPS[gaps]), Law(GAPS[gaps], drafter, k)
    assert sum(law.joint.values()) == pytest.approx(1.0, abs=1e-12)
    assert set(law.joint) == set(truth)
    assert max(abs(truth[tokens] - law.joint[tokens]) for tokens in truth) <= EXACT


@pytest.mark.parametrize("gaps", GAPS)
@pytest.mark.parametrize(("drafter", "k"), WAYS)
def test_no_round_takes_more_passes_than_it_gives_tokens(gaps, drafter, k):
    """On every path: so neither does a request."""
    assert Law(GAPS[gaps], drafter, k).excess <= 0


# Planted bugs: each is killed by the check that the right rounds pass above.


def killed(drafter="self", gaps="one gap", k=3) -> bool:
    return error(GAPS[gaps], drafter, k) > KILLED


def test_a_draft_that_is_always_accepted_is_killed(monkeypatch):
    right = rounds.judge
    monkeypatch.setattr(rounds, "judge", lambda f, c, p, q, d, sure: right(f, c, p, q, d, sure=99))
    assert killed("self")
    assert killed("ngram")


def test_the_first_token_of_an_ngram_draft_taken_for_sure_is_killed(monkeypatch):
    right = rounds.judge
    monkeypatch.setattr(rounds, "judge", lambda f, c, p, q, d, sure: right(f, c, p, q, d, sure=1))
    assert killed("ngram")


def test_recovering_from_p_is_killed(monkeypatch):
    monkeypatch.setattr(rounds, "residual", lambda p, q: p)
    assert killed("self")
    assert killed("ngram")


def test_an_absolute_residual_is_killed(monkeypatch):
    monkeypatch.setattr(rounds, "residual", lambda p, q: np.abs(p - q) / np.abs(p - q).sum())
    assert killed("self")


def test_an_oracle_that_does_not_see_the_draft_is_killed(monkeypatch):
    """An index error: every query of the oracle pass sees what the draft queries saw."""
    right = rounds._oracle
    monkeypatch.setattr(
        rounds, "_oracle", lambda f, chain: tuple(rounds.Query(q.place, f.rank) for q in right(f, chain))
    )
    assert killed("self")
    assert killed("ngram")


def test_an_oracle_that_misses_the_last_drafted_token_is_killed(monkeypatch):
    """The other index error, by one rank."""
    right = rounds._oracle
    monkeypatch.setattr(
        rounds, "_oracle", lambda f, c: tuple(rounds.Query(q.place, max(f.rank, q.seen - 1)) for q in right(f, c))
    )
    assert killed("self")


def test_a_bonus_from_the_last_judged_row_is_killed(monkeypatch):
    right = rounds.judge

    def judge(filling, chain, p, q, draws, sure):
        if len(p) > len(chain):
            p = np.concatenate([p[:-1], p[-2:-1]])
        return right(filling, chain, p, q, draws, sure)

    monkeypatch.setattr(rounds, "judge", judge)
    assert killed("self", k=2)


def test_drafts_behind_a_drafted_stop_kept_as_context_are_killed(monkeypatch):
    """The places that a stop leaves unwritten must not be seen by what follows."""

    def chain(self, tokens):
        return [(self.next + i, token) for i, token in enumerate(tokens)]

    assert error(GAPS["stops"], "self", 4) < KILLED
    monkeypatch.setattr(Filling, "chain", chain)
    with pytest.raises((AssertionError, IndexError)):
        assert not killed("self", gaps="stops", k=4)


def test_given_tokens_that_see_what_is_written_are_killed(monkeypatch):
    """The keys of given tokens would change with every token: the cached ones, and the density, would be of another
    law. Here the oracle pass alone lets them see the draft."""
    from specserve.infill.decode import Decoder

    right = Decoder._rows

    def rows(self, tasks, asks, contents, held):
        found = right(self, tasks, asks, contents, held)
        if asks[0].draft:
            found.seen[:, : found.ids.shape[1]] = len(contents[0])
        return found

    monkeypatch.setattr(Decoder, "_rows", rows)
    assert killed("self")
