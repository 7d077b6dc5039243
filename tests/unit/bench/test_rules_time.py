"""The batches whose verdicts are timed are what they are said to be."""

import pytest

from specserve.bench import rules_time
from specserve.bench.rules_time import NODES, SESSIONS, TIMED, batch
from specserve.verify import check_draft, decide


@pytest.mark.parametrize("name", TIMED)
def test_every_session_has_all_its_nodes_and_some_are_accepted(monkeypatch, name):
    monkeypatch.setattr(rules_time, "VOCAB", 2000)
    accepted = 0
    for variant in range(3):
        logits, cases = batch(variant, *TIMED[name])
        assert logits.shape == (SESSIONS * (1 + NODES), 2000)
        for case in cases:
            assert len(case.draft) == NODES
            check_draft(case.spec, case.draft)
        accepted += sum(len(outcome.accepted) for outcome in decide(logits, cases))
    assert SESSIONS < accepted < 3 * SESSIONS * NODES


def test_several_chains_make_a_tree():
    cases = [case for variant in range(2) for case in batch(variant, *TIMED["kseq, K=8"])[1]]
    assert all(len(case.draft.chains) == 8 for case in cases)
    assert sum(max(case.draft.depths()) > 1 for case in cases) > len(cases) / 2
