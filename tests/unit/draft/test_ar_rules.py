"""What an AR drafter sends for each rule: the law it drew from, drawn as the rule needs it to be exact."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from ar_toys import begin, drain, law, own_text, text
from scipy import stats

from specserve.draft.siblings import shape
from specserve.types import Close, Draft, Propose, Sampling, SessionSpec, SparseLaw
from specserve.verify import RULES, Case, check_draft, decide, draw_sparse
from specserve.verify.tossed import Tossed, drawn

TOSSED = [name for name, rule in RULES.items() if isinstance(rule, Tossed)]
IID = ["kseq", "recursive", "traversal"]
WOR = ["recursive-wor", "traversal-wor"]


def paths(draft: Draft) -> list[tuple[int, ...]]:
    return [tuple(draft.tokens[i] for i in draft.path(node)) for node in range(len(draft))]


def law_after(drafter, tokens: Sequence[int], prompt_len: int, **sampling: Any) -> SparseLaw:
    """Slow oracle: the law that a draw there must be reported with, from a plain pass of the model."""
    spec = SessionSpec(Sampling(**sampling), prompt_len, 100)
    return draw_sparse(law(drafter, list(tokens)), [spec], [list(tokens)], [(1, 0)])[1][0]


@pytest.mark.parametrize("rule", TOSSED)
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.7, "top_k": 6, "repetition_penalty": 1.3}])
def test_every_token_carries_the_law_after_its_prefix(rule, sampling, make_drafter):
    """Pitfall 1 of verification.md: q of raw logits while the draft was sampled under a transform."""
    drafter = make_drafter(nodes=32)
    sampling = {"temperature": 1.0, "seed": 4, **sampling}
    command = begin(1, text(12), 3, rule=rule, branches=3, nodes=16, **sampling)
    [proposal] = drain(drafter, command)
    draft = proposal.draft
    assert len(draft) >= 3
    assert draft.laws is not None
    for path, got in zip(paths(draft), draft.laws, strict=True):
        want = law_after(drafter, [*text(12), *path[:-1]], 12, **sampling)
        assert got.ids == want.ids
        assert got.probs == pytest.approx(want.probs, rel=1e-4)
        assert len(got.ids) == (6 if "top_k" in sampling else 64)
        assert sum(got.probs) == pytest.approx(1.0)
    check_draft(command.spec, draft)


@pytest.mark.parametrize("rule", RULES)
def test_at_temperature_0_every_rule_gets_the_greedy_chain(rule, make_drafter):
    drafter = make_drafter(nodes=32)
    branches = 1 if rule == "coupled" else 4
    [proposal] = drain(drafter, begin(1, text(12), 5, rule=rule, branches=branches))
    greedy = own_text(drafter, text(12), 5)
    assert paths(proposal.draft) == [greedy[: n + 1] for n in range(5)]
    if rule in TOSSED:
        assert proposal.draft.laws == tuple(SparseLaw((token,), (1.0,)) for token in greedy)


def test_a_deterministic_draft_is_the_likeliest_at_any_temperature(make_drafter):
    drafter = make_drafter()
    [proposal] = drain(drafter, begin(1, text(12), 5, rule="trie", temperature=1.0, seed=3))
    assert proposal.draft == Draft.chain(own_text(drafter, text(12), 5), "ar")


def test_single_chains_are_drawn_alike_whatever_the_rule(make_drafter):
    """One branch is one chain: the same draws, from the same laws, as the chain of `rejection`."""
    drafter = make_drafter(nodes=32, slots=2000)
    drafts = [
        drain(drafter, begin(i, text(12), 4, rule=rule, branches=1, temperature=1.0, seed=7))[0].draft
        for i, rule in enumerate(TOSSED)
    ]
    assert drafts == [drafts[0]] * len(drafts)
    assert len(drafts[0]) == 4


@pytest.mark.parametrize("rule", IID)
def test_chains_are_drawn_level_by_level_while_a_whole_level_fits(rule, make_drafter):
    """The next level's admission may not depend on whether its tokens happen to agree."""
    drafter = make_drafter(nodes=32, slots=4000)
    sizes = set()
    for seed in range(20):
        [proposal] = drain(
            drafter, begin(seed, text(12), 6, rule=rule, branches=4, nodes=13, temperature=1.0, top_k=3, seed=seed)
        )
        draft = proposal.draft
        depths = draft.depths()
        [length] = {len(chain) for chain in draft.chains}
        assert len(draft.chains) == 4
        for depth in range(1, length + 1):
            assert sum(d < depth for d in depths) + 4 <= 13
        assert length == 6 or len(draft) + 4 > 13
        sizes.add(length)
    assert len(sizes) > 1


def test_more_chains_than_nodes_are_cut_to_the_budget(make_drafter):
    drafter = make_drafter(nodes=32)
    [proposal] = drain(drafter, begin(1, text(12), 6, rule="kseq", branches=9, nodes=5, temperature=1.0))
    assert len(proposal.draft.chains) == 5
    assert len(proposal.draft) <= 5


def test_the_best_shape_for_siblings_is_grown_best_first():
    for branches, depth, nodes in [(3, 3, 10), (8, 8, 64), (2, 1, 9), (1, 5, 4)]:
        places = shape(branches, depth, nodes)
        assert len(places) == min(nodes, sum(branches**d for d in range(1, depth + 1)))
        values: list[float] = []
        for i, (parent, deep) in enumerate(places):
            rank = 1 + sum(other == parent for other, _ in places[:i])
            values.append((values[parent] if parent >= 0 else 1.0) * 0.6 / rank**2)
            assert rank <= branches
            assert deep == (1 if parent < 0 else places[parent][1] + 1) <= depth
        assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("rule", WOR)
def test_siblings_are_distinct_and_the_shape_looks_at_no_token(rule, make_drafter):
    drafter = make_drafter(nodes=32, slots=4000)
    shapes = set()
    for seed in range(10):
        command = begin(seed, text(12), 4, rule=rule, branches=4, nodes=20, temperature=1.0, seed=seed)
        draft = drain(drafter, command)[0].draft
        children = drawn(draft)
        assert all(len({draft.tokens[i] for i in some}) == len(some) for some in children.values())
        shapes.add(draft.parents)
    assert len(shapes) == 1
    assert len(next(iter(shapes))) == 20
    narrow = begin(99, text(12), 4, rule=rule, branches=4, nodes=20, temperature=1.0, top_k=2)
    assert max(len(some) for some in drawn(drain(drafter, narrow)[0].draft).values()) == 2


@pytest.mark.parametrize("rule", ["block", "kseq"])
def test_a_drawn_chain_ends_with_the_token_that_takes_confidence_below_the_floor(rule, make_drafter):
    plain, careful = make_drafter(nodes=32, slots=2000), make_drafter(nodes=32, slots=2000, min_confidence=0.05)
    lengths = []
    for seed in range(6):
        command = begin(seed, text(12, seed), 6, rule=rule, branches=3, temperature=1.0, seed=seed)
        full, short = (drain(drafter, command)[0].draft for drafter in (plain, careful))
        found = paths(short)
        ends = [found[chain[-1]] for chain in short.chains] if rule == "kseq" else [found[-1]]
        assert set(found) <= set(paths(full))
        for end in ends:
            trust, length = 1.0, 0
            while length < 6 and trust >= 0.05:
                if length == len(end):
                    pytest.fail("a chain ended too soon")
                prefix = [*text(12, seed), *end[:length]]
                row = law(plain, prefix).softmax(-1)[0]
                reported = law_after(plain, prefix, 12, temperature=1.0)
                token = end[length]
                trust *= float(row[token]) if rule == "block" else reported.probs[reported.ids.index(token)]
                length += 1
            assert length == len(end)
            lengths.append(length)
    assert 1 < np.mean(lengths) < 6, "the floor must matter here"


def test_chains_are_independent_draws_from_the_law_they_carry(make_drafter):
    """χ² of the first tokens over chains, of pairs of chains, and of first and second tokens.

    False alarms with fresh seeds: 3e-4. Kills: one draw index for all chains, or for all depths.
    """
    drafter, n = make_drafter(nodes=16, slots=12000), 400
    commands = [
        begin(i, text(5), 2, max_len=8, rule="kseq", branches=4, temperature=2.0, top_k=4, seed=i) for i in range(n)
    ]
    drafts = [reply.draft for reply in drain(drafter, *commands)]
    first = drafts[0].laws[0]
    q = np.array(first.probs) / sum(first.probs)
    assert all(draft.laws[0] == first for draft in drafts)
    rows = np.array([[first.ids.index(draft.tokens[chain[0]]) for chain in draft.chains] for draft in drafts])
    assert stats.chisquare(np.bincount(rows.ravel(), minlength=4), 4 * n * q).pvalue > 1e-4
    pairs = np.bincount(np.concatenate([4 * rows[:, a] + rows[:, b] for a, b in ((0, 1), (2, 3))]), minlength=16)
    assert stats.chisquare(pairs, 2 * n * np.outer(q, q).ravel()).pvalue > 1e-4
    counts, expected = np.zeros((4, 4)), np.zeros((4, 4))
    for draft in drafts:
        for chain in draft.chains:
            token, after = draft.tokens[chain[0]], draft.laws[chain[1]]
            counts[first.ids.index(token), after.ids.index(draft.tokens[chain[1]])] += 1
            expected[first.ids.index(token)] = np.array(after.probs) / sum(after.probs)
    assert stats.chisquare(counts.ravel(), (4 * n * q[:, None] * expected).ravel()).pvalue > 1e-4


V = 4
TABLE = torch.randn(V, V, generator=torch.Generator().manual_seed(2)) * 1.2


@pytest.mark.parametrize("rule", RULES)
def test_the_first_two_tokens_follow_the_target_whatever_is_drafted(rule, make_drafter):
    """χ² of the joint law over 1,000 seeds: drafts from the engine, verdicts from `decide`, a Markov target.

    False alarms with fresh seeds: 1e-3 a rule. Kills: chains that share a draw; laws of another prefix.
    """
    drafter, n = make_drafter(nodes=12, slots=12000, vocab_size=V), 1000
    counts, accepted = np.zeros((V, V)), 0
    for start in range(0, n, 500):
        specs = {
            seed: SessionSpec(Sampling(temperature=1.0, seed=seed), 3, 9, rule, 3, 9)
            for seed in range(start, start + 500)
        }
        texts = {seed: [1, 3, 2] for seed in specs}
        held = dict.fromkeys(specs, 0)
        while short := [seed for seed in specs if len(texts[seed]) < 5]:
            proposals = drain(drafter, *(Propose(s, held[s], tuple(texts[s][held[s] :]), 2, specs[s]) for s in short))
            cases = [Case(specs[r.session], tuple(texts[r.session]), r.draft) for r in proposals]
            logits = TABLE[[prefix[-1] for case in cases for prefix in case.prefixes()]]
            for case, reply, outcome in zip(cases, proposals, decide(logits, cases), strict=True):
                held[reply.session] = len(case.tokens)
                texts[reply.session] += [*(case.draft.tokens[i] for i in outcome.accepted), outcome.token]
                accepted += len(outcome.accepted)
        for seed, tokens in texts.items():
            counts[tokens[3], tokens[4]] += 1
            drafter.submit(Close(seed))
    p = TABLE.double().softmax(-1).numpy()
    assert accepted > n / 3
    assert stats.chisquare(counts.ravel(), (n * p[2][:, None] * p).ravel()).pvalue > 1e-3
