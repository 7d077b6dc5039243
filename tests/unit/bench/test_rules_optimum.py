"""The share of the optimum: exact, and only where rounds began."""

import numpy as np
import pytest

from specserve.bench.rules import FIXED, KSEQ
from specserve.bench.rules_optimum import accepted, shares
from specserve.bench.rules_play import Cost, Job, Pair
from specserve.types import Sampling, SparseLaw


def pairs():
    random = np.random.default_rng(4)
    for _ in range(20):
        p, q = random.dirichlet(np.full(30, 0.3), 2)
        ids = tuple(int(i) for i in np.argsort(-q)[:12])
        yield p, SparseLaw(ids, tuple((q[list(ids)] / q[list(ids)].sum()).tolist()))


@pytest.mark.parametrize("k", [1, 2, 8])
def test_kseq_lies_between_its_bound_and_the_optimum(k):
    for p, law in pairs():
        found, best = accepted(p, law, k)
        assert (1 - (1 - 1 / k) ** k) * best - 1e-9 <= found <= best + 1e-9 <= 1 + 2e-9


def test_one_draft_is_accepted_as_often_as_the_laws_overlap():
    for p, law in pairs():
        q = np.zeros_like(p)
        q[list(law.ids)] = law.probs
        assert accepted(p, law, 1) == pytest.approx((np.minimum(p, q).sum(),) * 2)


def test_what_is_expected_at_the_beginnings_of_rounds_is_what_happens(folders):
    """600 rounds: the mean acceptance is met within 5 standard errors (false alarm below 1e-6, seeds pinned)."""
    pair = Pair(folders.target, folders.drafter, sessions=30)
    kseq = next(way for way in FIXED if way.name == KSEQ)
    jobs = [Job(i, (5, 6, i), Sampling(temperature=1.0, seed=i)) for i in range(30)]
    played = pair.play(kseq, jobs, 60, Cost())
    found = shares(pair.engine, played, 8)
    positions = sum(rounds for *_, rounds in found)
    assert [prompt for prompt, *_ in found] == [one.job.prompt for one in played if one.openings]
    assert 0.9 * sum(one.rounds for one in played) <= positions <= sum(one.rounds for one in played)
    want = sum(acceptance for _, acceptance, *_ in found) / positions
    met = sum(one.started for one in played) / sum(one.rounds for one in played)
    assert abs(met - want) < 5 * (want * (1 - want) / positions) ** 0.5
    assert pair.engine.sessions == set()
