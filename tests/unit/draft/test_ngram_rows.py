"""Votes, walks and tries against slow oracles."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from specserve.draft.ngram.history import SEAM
from specserve.draft.ngram.rows import Rows, vote
from specserve.draft.ngram.successors import KEPT, Recycled, walk
from specserve.draft.ngram.table import with_seam
from specserve.draft.ngram.trie import cut, merge_rows, values
from specserve.types import Draft, merge

M, W = 5, 4
window = st.tuples(st.lists(st.integers(0, 2), min_size=W, max_size=W), st.integers(0, W), st.integers(-1, 2))


def cut_off(tokens, size):
    return [*tokens[:size], *[SEAM] * (W - size)]


def best_rows(windows, rows):
    """By the definition: the window that adds most votes over its prefixes; a higher tier outweighs all lower."""
    left, chosen = {}, []
    for tokens, tier in windows:
        for d in range(1, len(tokens) + 1):
            left[tuple(tokens[:d])] = left.get(tuple(tokens[:d]), 0) + (M + 1) ** tier
    while len(chosen) < rows:
        gains = [sum(left.get(tuple(tokens[:d]), 0) for d in range(1, len(tokens) + 1)) for tokens, _ in windows]
        if not gains or max(gains) == 0:
            break
        tokens, _ = windows[gains.index(max(gains))]
        chosen.append(tokens)
        for d in range(1, len(tokens) + 1):
            left[tuple(tokens[:d])] = 0
    return chosen


@given(st.lists(window, max_size=M), st.integers(1, 4))
def test_rows_are_those_with_the_longest_expected_match(windows, rows):
    windows = sorted(windows, key=lambda w: -w[2])
    grid = np.full((1, M, W), SEAM, np.int32)
    tiers = np.full((1, M), -1)
    for i, (tokens, size, tier) in enumerate(windows):
        grid[0, i], tiers[0, i] = cut_off(tokens, size), tier
    tokens, evidence = vote(grid, tiers, rows)
    got = [[t for t in row if t != SEAM] for row in tokens[0].tolist()]
    expected = best_rows([(t[:size], tier) for t, size, tier in windows if tier >= 0], rows)
    assert [row for row in got if row] == expected
    assert np.all((evidence >= 0) & (evidence < 16))


def test_one_token_deep_votes_are_counts_and_of_equals_the_first():
    grid = np.array([[[5], [6], [5], [7]]], np.int32)
    tokens, _ = vote(grid, np.zeros((1, 4), int), 3)
    assert tokens[0, :, 0].tolist() == [5, 6, 7]


def test_evidence_grows_with_the_share_of_the_votes_and_the_tier():
    alone = vote(np.array([[[5, 6]]], np.int32), np.array([[0]]), 1)[1][0, 0]
    agreed = vote(np.array([[[5, 6]] * 4], np.int32), np.zeros((1, 4), int), 1)[1][0, 0]
    split = vote(np.array([[[5, 6], [6, 6], [7, 6]]], np.int32), np.zeros((1, 3), int), 1)[1][0, 0]
    strong = vote(np.array([[[5, 6]] * 4], np.int32), np.full((1, 4), 2), 1)[1][0, 0]
    assert alone.tolist() == [0, 0]
    assert agreed.tolist() == [3, 3]
    assert split.tolist() == [1, 0]
    assert strong.tolist() == [11, 11]


@given(st.lists(st.lists(st.integers(0, 5), min_size=3, max_size=3), min_size=6, max_size=6), st.integers(0, 9))
def test_a_walk_follows_the_best_successor(table, root):
    tokens = walk(with_seam(np.array(table, np.int32)), np.array([root], np.int32), 2, 4)
    for row in range(2):
        expected, token = [], root
        for depth in range(4):
            token = table[token][row if depth == 0 else 0] if 0 <= token < 6 else SEAM
            expected.append(token)
        assert tokens[0, row].tolist() == expected


def test_greedy_beginnings_replace_the_walk_as_far_as_they_go():
    successors = with_seam(np.array([[1, 2], [2, 0], [0, 1]], np.int32))
    greedy = with_seam(np.array([[[1, 0]], [[2, 2]], [[0, 1]]], np.int32))
    rows = walk(successors, np.array([0], np.int32), 2, 4, greedy)
    assert rows[0].tolist() == [[1, 0, 1, 2], [2, 0, 1, 2]]


@given(st.lists(st.integers(0, 20), max_size=80))
def test_recycled_successors_are_the_latest_eight_that_differ(tokens):
    recycled = Recycled()
    recycled.learn(tokens)
    for token in set(tokens[:-1]):
        after = [b for a, b in itertools.pairwise(tokens) if a == token]
        expected = list(dict.fromkeys(reversed(after)))[:KEPT]
        assert [t for t in recycled.table[token].tolist() if t != SEAM] == expected


def test_recycled_successors_begin_as_the_bigrams_and_an_absurd_id_costs_no_memory():
    recycled = Recycled(with_seam(np.array([[1, 0], [0, 1]], np.int32)))
    assert recycled.table[0, :2].tolist() == [1, 0]
    recycled.learn([0, 0, 1 << 40])
    assert recycled.table[0, :2].tolist() == [0, 1]
    assert recycled.nbytes < 200


rows_of_tokens = st.lists(
    st.tuples(st.lists(st.integers(0, 2), min_size=W, max_size=W), st.integers(0, W)), min_size=1, max_size=6
)


@given(rows_of_tokens, st.integers(1, 24), st.integers(0, W), st.integers(1, 4), st.integers(0, 99))
def test_a_cut_trie_is_the_best_of_its_size_and_whole_it_is_the_merged_rows(given_rows, nodes, depth, branches, seed):
    tokens = np.array([[cut_off(t, size) for t, size in given_rows]], np.int32)
    k = len(given_rows)
    rows = Rows(tokens, np.zeros(tokens.shape, np.int64), np.zeros(k, np.int64))
    trie = merge_rows(rows)
    rates = np.random.default_rng(seed).uniform(0.1, 0.9, tokens.shape)
    value = values(trie, rates, np.array([depth]), np.array([branches]))
    (whole,), _ = cut(rows, trie, value, [999], "x")
    (some,), chosen = cut(rows, trie, value, [nodes], "x")
    assert (some.tokens, some.parents) == (whole.tokens[:nodes], whole.parents[:nodes]), "best first"
    assert chosen.sum() == len(some)
    assert all(parent < node for node, parent in enumerate(whole.parents))
    assert max(whole.depths(), default=0) <= depth
    if depth == W and branches >= 3:
        expected = merge([Draft.chain(tuple(t[:size])) for t, size in given_rows])
        assert paths(whole) == paths(expected)


def paths(draft):
    return {tuple(draft.tokens[i] for i in draft.path(node)) for node in range(len(draft))}


def test_a_node_that_several_rows_offer_has_the_best_of_their_rates():
    tokens = np.array([[[1, 2], [1, 3]]], np.int32)
    trie = merge_rows(Rows(tokens, np.zeros((1, 2, 2), np.int64), np.array([0, 1])))
    value = values(trie, np.array([[[0.2, 0.5], [0.6, 0.5]]]), np.array([2]), np.array([9]))
    assert value[0].tolist() == [[0.6, 0.3], [0.6, 0.3]]
    assert trie.siblings[0].tolist() == [[0, 0], [0, 1]]
    assert trie.own[0].tolist() == [[True, True], [False, True]]
