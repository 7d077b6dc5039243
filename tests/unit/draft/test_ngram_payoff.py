"""What is learned from the committed text."""

import numpy as np
import pytest

from specserve.draft.ngram.payoff import Payoff
from specserve.draft.ngram.rows import STRATEGIES

CONTEXT, SUFFIX = STRATEGIES.index("context"), STRATEGIES.index("suffix")


def observe(payoff, keys, matched, committed, times=1):
    """K rows that were right `matched` deep; `committed` tokens are known."""
    width = keys.shape[-1]
    right = np.arange(width) < np.array(matched)[None, :, None]
    known = (np.arange(width) < committed)[None, None]
    for _ in range(times):
        grown = payoff.observe(keys, right & known, known)
    return grown


def make(strategies=(CONTEXT, SUFFIX), width=4):
    payoff = Payoff(np.array(strategies))
    keys = payoff.keys(np.zeros((1, len(strategies), width), int), np.zeros((1, len(strategies), width), int))
    return payoff, keys


def test_rates_become_what_was_seen_and_each_strategy_learns_by_itself():
    payoff, keys = make()
    observe(payoff, keys, [4, 0], 4, times=200)
    rates = payoff.rates(keys, Payoff.fresh()[None])[0]
    assert rates[0] == pytest.approx(0.98, abs=0.01)
    assert rates[1, 0] < 0.02


def test_a_depth_is_tried_only_where_its_parent_was_the_text():
    """The row went wrong at depth 1: nothing is known of depth 2, which keeps its hope."""
    payoff, keys = make()
    before = payoff.rates(keys, Payoff.fresh()[None])[0, 1, 1:].tolist()
    observe(payoff, keys, [4, 0], 4, times=50)
    assert payoff.rates(keys, Payoff.fresh()[None])[0, 1, 1:].tolist() == before


def test_beyond_the_known_text_nothing_counts():
    payoff, keys = make()
    before = payoff.rates(keys, Payoff.fresh()[None])[0, 0, 1:].tolist()
    observe(payoff, keys, [1, 1], 1, times=50)
    assert payoff.rates(keys, Payoff.fresh()[None])[0, 0, 1:].tolist() == before


def test_a_sessions_record_corrects_what_all_have_shown():
    payoff, keys = make()
    record = Payoff.fresh()
    for _ in range(30):
        record = record + observe(payoff, keys, [4, 0], 4)[0]
        observe(payoff, keys, [0, 0], 4)
    half = payoff.rates(keys, Payoff.fresh()[None])[0, 0, 0]
    mine = payoff.rates(keys, record[None])[0, 0, 0]
    assert half == pytest.approx(0.5, abs=0.1)
    assert mine > 0.8


def test_nodes_that_count_elsewhere_do_not_count_twice():
    payoff, keys = make((CONTEXT, CONTEXT))
    once = observe(make((CONTEXT, CONTEXT))[0], keys, [2, 2], 4)
    keys[:, 1] = -1
    again = observe(payoff, keys, [2, 2], 4)
    assert (again == once / 2).all()


def test_the_summary_names_strategy_and_depth():
    payoff, keys = make()
    observe(payoff, keys, [2, 0], 4, times=100)
    summary = payoff.summary()
    assert summary["context_acceptance_at_1"] == pytest.approx(1.0)
    assert summary["suffix_acceptance_at_1"] == 0.0
    assert "suffix_acceptance_at_2" not in summary
