"""Every rule emits exactly the target's joint law: it is run on every draft and every outcome of its coins."""

import numpy as np
import pytest
from enumeration import (
    chains_of,
    emitted_law,
    exactness,
    iid_chains,
    joint_error,
    mean_accepted,
    sparse,
    table,
    trees_without_replacement,
)

from specserve.types import Draft
from specserve.verify import RULES, optimum

EXACT = 1e-12


@pytest.fixture(autouse=True)
def _walk_by_depth(monkeypatch):
    """The walk then draws only at rows it visits, so that their draws can be enumerated."""
    monkeypatch.setattr("specserve.verify.coupled._AT_ONCE", 0)


@pytest.mark.parametrize("rule", RULES)
def test_the_joint_law_is_the_target_s(rule):
    """Random models with zeros, V ≤ 3, L ≤ 3, K ≤ 3, the drafters that the rule is for. No sampling: cannot flake."""
    assert exactness(rule, models=5) <= EXACT


@pytest.mark.parametrize("rule", ["kseq", "recursive", "traversal"])
def test_three_chains_of_three_tokens(rule):
    rng = np.random.default_rng(5)
    for vocab, k, zeros in ((3, 3, 0.75), (3, 2, 0.2), (2, 3, 0.2)):  # many zeros keep the first one enumerable
        p, q = table(rng, vocab, 3), table(rng, vocab, 3, zeros)
        assert joint_error(emitted_law(p, iid_chains(q, vocab, 3, k), rule), p, vocab, 4) <= EXACT


@pytest.mark.parametrize("rule", ["recursive-wor", "traversal-wor"])
def test_siblings_that_exhaust_the_draft_law(rule):
    """More siblings asked for than q has tokens: what is left of q is nothing, not uniform."""
    rng = np.random.default_rng(6)
    for branching in ((3, 1), (2, 1, 1)):
        n = len(branching)
        p, q = table(rng, 3, n), table(rng, 3, n, zeros=0.6)
        assert joint_error(emitted_law(p, trees_without_replacement(q, branching), rule), p, 3, n + 1) <= EXACT


@pytest.mark.parametrize("rule", ["recursive-wor", "traversal-wor"])
def test_siblings_of_different_drafters_keep_their_own_laws(rule):
    rng = np.random.default_rng(7)
    p = table(rng, 3, 2)
    drafter = chains_of([table(rng, 3, 2), table(rng, 3, 2)], 3, 2, distinct=True)
    assert joint_error(emitted_law(p, drafter, rule), p, 3, 3) <= EXACT


@pytest.mark.parametrize("rule", [r for r in RULES if r not in ("coupled", "trie")])
def test_degenerate_laws(rule):
    """q = p, disjoint supports, and a deterministic drafter with its one-hot law."""
    rng = np.random.default_rng(8)
    p = table(rng, 3, 2)
    low, high = ({x: np.array(law) for x in p} for law in ([1.0, 0, 0], [0, 0.4, 0.6]))
    draw = trees_without_replacement if rule.endswith("wor") else None
    for target, q in ((p, p), (low, high), (high, low), (p, low)):
        drafter = draw(q, (1, 1)) if draw else iid_chains(q, 3, 2, 1)
        out = emitted_law(target, drafter, rule)
        assert joint_error(out, target, 3, 3) <= EXACT
        if q is target:
            assert mean_accepted(out) == pytest.approx(2)


def test_no_draft_is_plain_decoding():
    p = table(np.random.default_rng(9), 3, 0)
    for rule in RULES:
        out = emitted_law(p, [(1.0, Draft())], rule)
        assert [out.get((v,), 0.0) for v in range(3)] == pytest.approx(p[()].tolist(), abs=EXACT)


def test_block_accepts_what_its_paper_proves_and_never_less_than_rejection():
    """E[τ] = Σ E[P_i], P_i = min(1, P_{i-1}·p/q); on a chain traversal is block."""
    rng = np.random.default_rng(10)
    for _ in range(4):
        p, q = table(rng, 3, 2), table(rng, 3, 2)
        mean = {
            r: mean_accepted(emitted_law(p, iid_chains(q, 3, 2, 1), r)) for r in ("rejection", "block", "traversal")
        }
        want = 0.0
        for weight, draft in iid_chains(q, 3, 2, 1):
            prefix = 1.0
            for i, token in enumerate(draft.tokens):
                prefix = min(1.0, prefix * p[draft.tokens[:i]][token] / q[draft.tokens[:i]][token])
                want += weight * prefix
        assert mean["block"] == pytest.approx(want, abs=1e-12)
        assert mean["traversal"] == pytest.approx(want, abs=1e-12)
        assert mean["block"] >= mean["rejection"] - 1e-12


def test_kseq_is_within_its_bound_of_the_optimum():
    """One position: (1 - (1 - 1/K)^K)·α* ≤ acceptance ≤ α*, and K = 1 is the optimum, 1 - TV."""
    rng = np.random.default_rng(12)
    for k in (1, 2, 3):
        for _ in range(4):
            p, q = table(rng, 3, 1), table(rng, 3, 1)
            accepted = mean_accepted(emitted_law(p, iid_chains(q, 3, 1, k), "kseq"))
            best = optimum(p[()], q[()], k)
            assert (1 - (1 - 1 / k) ** k) * best - 1e-12 <= accepted <= best + 1e-12
            if k == 1:
                assert accepted == pytest.approx(np.minimum(p[()], q[()]).sum())


def test_sparse_laws_leave_out_what_has_no_probability():
    assert sparse(np.array([0.0, 0.25, 0.75])).ids == (1, 2)
