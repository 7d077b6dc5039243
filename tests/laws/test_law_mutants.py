"""Planted bugs. Each is killed by the very check that the right rule passes: `exactness` (enumeration, no sampling),
`p_value` (χ² of whole generations) or the seed invariance of `coupled`.

The χ² mutants die at p < 1e-8 with pinned seeds, the right rules pass at p > 1e-4.
"""

import functools

import numpy as np
import pytest
import torch
from enumeration import DRAFTERS, emitted_law, exactness, iid_chains, joint_error, table
from simulation import Drafter, chains, coupled_trees, generate, p_value, point_masses

from specserve.types import Draft
from specserve.verify import RULES, noise, several, tossed
from specserve.verify.chain import keep
from specserve.verify.law import Emission, Law
from specserve.verify.noise import Purpose
from specserve.verify.tossed import Tossed
from specserve.verify.transform import Prefix

EXACT, KILLED, UNLIKELY = 1e-12, 1e-3, 1e-8
PLAIN = {"temperature": 1.0}


@pytest.fixture(autouse=True)
def _walk_by_depth(monkeypatch):
    monkeypatch.setattr("specserve.verify.coupled._AT_ONCE", 0)


@functools.cache
def right(rule: str):
    """The right rule, after making sure that it passes the check its mutants must fail."""
    assert exactness(rule) <= EXACT
    return RULES[rule]


def mutate(monkeypatch, rule: str, function) -> None:
    """Put a mutant in the registry in the place of a rule."""
    was = right(rule)
    monkeypatch.setitem(RULES, rule, Tossed(rule, function, was.one_chain, was.one_law, was.distinct))


# --- one chain ---


def token_rule(accept, residual):
    """Token verification with parts to plant bugs in."""

    def rule(tree, coin):
        path, node = [], -1
        while fork := tree.forks.get(node):
            child = fork.children[0]
            if not coin(accept(fork.p[child.at], child.q[child.at])):
                return Emission(tuple(path), residual(tree, fork, child))
            node = child.node
            path.append(node)
        return Emission(tuple(path))

    return rule


def right_accept(p, q):
    return p / q


def right_residual(tree, fork, child):
    return fork.law.residual(child.q)[1]


def test_the_parts_without_a_bug_pass(monkeypatch):
    """The mutants below differ from the right rule by their one bug only."""
    mutate(monkeypatch, "rejection", token_rule(right_accept, right_residual))
    assert exactness("rejection") <= EXACT


@pytest.mark.parametrize(
    ("bug", "accept"),
    [
        ("always accepts", lambda p, q: 1.0),
        ("inverted ratio", lambda p, q: q / p if p > 0 else 1.0),
        ("tempered acceptance, residual unchanged", lambda p, q: min(0.9, p / q)),
        ("accepts what has p = 0", lambda p, q: max(0.05, p / q)),
        ("target probability in the place of the ratio", lambda p, q: p),
    ],
)
def test_rejection_with_a_wrong_acceptance_is_killed(monkeypatch, bug, accept):
    mutate(monkeypatch, "rejection", token_rule(accept, right_residual))
    assert exactness("rejection") > KILLED, bug


def test_rejection_that_recovers_from_p_is_killed(monkeypatch):
    mutate(monkeypatch, "rejection", token_rule(right_accept, lambda tree, fork, child: fork.law))
    assert exactness("rejection") > KILLED


def test_rejection_with_an_absolute_residual_is_killed(monkeypatch):
    def residual(tree, fork, child):
        return Law(fork, np.abs(fork.p - child.q), 1.0)

    mutate(monkeypatch, "rejection", token_rule(right_accept, residual))
    assert exactness("rejection") > KILLED


def test_rejection_whose_residual_reads_the_next_position_is_killed(monkeypatch):
    """An index error: i.i.d. tests are blind to it. Laws on the same ids, so that nothing but the values differ."""

    def residual(tree, fork, child):
        other = tree.forks.get(child.node)
        q = other.children[0].q if other and other.ids.tolist() == fork.ids.tolist() else child.q
        return fork.law.residual(q)[1]

    mutate(monkeypatch, "rejection", token_rule(right_accept, residual))
    assert exactness("rejection") > KILLED


def test_rejection_whose_bonus_comes_from_the_last_judged_row_is_killed(monkeypatch):
    """The other index error: the row before the last accepted token is read once more."""
    right("rejection")
    emissions = tossed.Laws.emissions

    def a_row_too_early(self, decided):
        return emissions(self, [(i, Emission(e.path[:-1]) if e.law is None else e) for i, e in decided])

    monkeypatch.setattr(tossed.Laws, "emissions", a_row_too_early)
    assert exactness("rejection") > KILLED


def block_rule(first_failure: bool = False, token_residual: bool = False):
    """Block verification with two bugs to switch on."""

    def rule(tree, coin):
        path, stops, node, prefix = [], [], -1, 1.0
        while fork := tree.forks.get(node):
            child = fork.children[0]
            mass, law = fork.law.residual(child.q, prefix)
            stops.append((keep(mass, prefix), fork.law.residual(child.q)[1] if token_residual else law))
            prefix = min(1.0, prefix * fork.p[child.at] / child.q[child.at])
            node = child.node
            path.append(node)
        stops.append((prefix, None))
        came = [True, *(coin(h) for h, _ in stops[1:])]
        if first_failure:
            length = came.index(False) - 1 if False in came else len(path)
        else:
            length = max(i for i, c in enumerate(came) if c)
        return Emission(tuple(path[:length]), stops[length][1])

    return rule


@pytest.mark.parametrize("bug", ["first_failure", "token_residual"])
def test_block_with_a_bug_is_killed(monkeypatch, bug):
    mutate(monkeypatch, "block", block_rule())
    assert exactness("block") <= EXACT
    mutate(monkeypatch, "block", block_rule(**{bug: True}))
    assert exactness("block") > KILLED


# --- several drafts ---


def test_kseq_with_rho_1_is_killed(monkeypatch):
    right("kseq")
    monkeypatch.setattr(several, "least_rho", lambda fork, q, k: 1.0)
    assert exactness("kseq") > KILLED


def test_kseq_with_rho_just_below_its_bound_is_killed(monkeypatch):
    """A root-finder that lands below ρ*: here by 2 %."""
    right("kseq")
    least = several.least_rho
    monkeypatch.setattr(several, "least_rho", lambda fork, q, k: max(1.0, 0.98 * least(fork, q, k)))
    assert exactness("kseq") > 1e-4


def test_kseq_that_forgets_how_many_chains_are_active_is_killed(monkeypatch):
    """The residual for all K chains at every depth."""
    right("kseq")
    residual = several.kseq_residual
    monkeypatch.setattr(several, "kseq_residual", lambda fork, q, k, rho: residual(fork, q, 3, rho))
    assert exactness("kseq") > KILLED


@pytest.mark.parametrize("rule", ["kseq", "recursive", "traversal"])
def test_merging_equal_drafts_and_forgetting_how_many_is_killed(monkeypatch, rule):
    right(rule)
    drawn = tossed.drawn
    monkeypatch.setattr(
        tossed, "drawn", lambda draft: {node: list(dict.fromkeys(kids)) for node, kids in drawn(draft).items()}
    )
    assert exactness(rule) > KILLED


def test_recursive_that_never_updates_p_is_killed(monkeypatch):
    def rule(tree, coin):
        path, node = [], -1
        while fork := tree.forks.get(node):
            for child in fork.children:
                if coin(fork.p[child.at] / child.q[child.at]):
                    node = child.node
                    path.append(node)
                    break
            else:
                return Emission(tuple(path), fork.law.residual(fork.children[-1].q)[1])
        return Emission(tuple(path))

    mutate(monkeypatch, "recursive", rule)
    assert exactness("recursive") > KILLED


@pytest.mark.parametrize("rule", ["recursive-wor", "traversal-wor"])
def test_without_replacement_judged_as_if_with_is_killed(monkeypatch, rule):
    mutate(monkeypatch, rule, RULES[rule].rule.func)
    assert exactness(rule) > KILLED


@pytest.mark.parametrize("rule", ["recursive-wor", "traversal-wor"])
def test_an_exhausted_law_masked_to_uniform_is_killed(monkeypatch, rule):
    """A known bug: when nothing is left of q, the later siblings are judged as if drawn from a uniform law."""
    right(rule)

    def without(q, at):
        left = q.copy()
        left[at] = 0.0
        return np.full_like(q, 1 / len(q)) if (left > 0).sum() <= 1 else left / left.sum()

    monkeypatch.setattr(several, "without", without)
    monkeypatch.setattr("specserve.verify.traversal.without", without)
    assert exactness(rule) > KILLED


def test_traversal_that_keeps_the_weight_of_its_node_is_killed(monkeypatch):
    """a is not updated after a rejected child."""
    right("traversal")
    monkeypatch.setattr("specserve.verify.traversal.keep", lambda mass, prefix: prefix)
    assert exactness("traversal") > KILLED


# --- walks ---


def test_coupled_that_prefers_its_children_is_killed(monkeypatch):
    """Draws twice and takes the draw that a first child equals."""
    coupled = right("coupled")

    def biased(logits, cases, starts, draw):
        kids = {t for c in cases for t, parent in zip(c.draft.tokens, c.draft.parents, strict=True) if parent < 0}

        def twice(rows, specs, histories):
            scores, first = draw(rows, specs, histories)
            second = draw(rows, specs, histories)[1]
            pairs = zip(first.tolist(), second.tolist(), strict=True)
            return scores, torch.tensor([b if b in kids and a not in kids else a for a, b in pairs])

        return coupled(logits, cases, starts, draw=twice)

    assert walk_error(monkeypatch, "coupled", coupled) <= EXACT
    assert walk_error(monkeypatch, "coupled", biased) > KILLED


def test_a_draw_per_draft_with_the_longest_match_kept_is_killed(monkeypatch):
    """Rows of a batch that sample on their own: the first-token law bends towards what was drafted."""
    trie = right("trie").func

    def per_draft(logits, cases, starts, draw):
        (case,) = cases
        drafts = [trie(logits, cases, starts, draw=draw)[0] for _ in case.draft.chains]
        return [max(drafts, key=lambda outcome: len(outcome.accepted))]

    assert walk_error(monkeypatch, "trie", trie) <= EXACT
    assert walk_error(monkeypatch, "trie", per_draft) > KILLED


def walk_error(monkeypatch, name: str, walk) -> float:
    monkeypatch.setitem(RULES, name, walk)
    rng = np.random.default_rng(0)
    p, q = table(rng, 3, 1, zeros=0.0), table(rng, 3, 1)
    return joint_error(emitted_law(p, iid_chains(q, 3, 1, 2), name), p, 3, 2)


# --- drafters that lie ---


def lying(rule: str, tell) -> float:
    """Error when the drafter reports tell(law) for a law it drew from."""
    rng = np.random.default_rng(3)
    p, q = table(rng, 3, 2), table(rng, 3, 2, zeros=0.0)
    told = {prefix: tell(law) for prefix, law in q.items()}
    return joint_error(emitted_law(p, iid_chains(q, 3, 2, 1, told), rule), p, 3, 3)


@pytest.mark.parametrize("rule", ["rejection", "block", "traversal"])
def test_a_law_from_raw_logits_while_the_draft_was_sharpened_is_killed(rule):
    """q reported before the sampling transform (here T = 0.5), the draft sampled after it."""
    assert lying(rule, lambda law: law) <= EXACT
    assert lying(rule, lambda law: law**0.5 / (law**0.5).sum()) > KILLED


@pytest.mark.parametrize("rule", ["rejection", "block"])
def test_an_argmax_draft_judged_with_its_softmax_is_killed(rule):
    rng = np.random.default_rng(4)
    p, soft = table(rng, 3, 2), table(rng, 3, 2, zeros=0.0)
    hard = {prefix: np.eye(3)[law.argmax()] for prefix, law in soft.items()}
    assert joint_error(emitted_law(p, iid_chains(hard, 3, 2, 1), rule), p, 3, 3) <= EXACT
    assert joint_error(emitted_law(p, iid_chains(hard, 3, 2, 1, soft), rule), p, 3, 3) > KILLED


@pytest.mark.parametrize("rule", ["rejection", "block"])
def test_a_draft_cut_by_a_look_at_the_token_itself_is_killed(rule):
    """Adaptive length may look at x_<k only: here a chain is cut before a token that was drawn with q < 0.4."""
    rng = np.random.default_rng(6)
    p, q = table(rng, 3, 2, zeros=0.0), table(rng, 3, 2, zeros=0.0)

    def cut(looks_ahead: bool):
        for weight, draft in iid_chains(q, 3, 2, 1):
            sure = [law.probs[law.ids.index(t)] >= 0.4 for t, law in zip(draft.tokens, draft.laws, strict=True)]
            n = [*sure, False].index(False) if looks_ahead else 1 + sure[0]
            chains = (tuple(range(n)),) if n else ()
            yield weight, Draft(draft.tokens[:n], draft.parents[:n], draft.drafters[:n], draft.laws[:n], chains)

    assert joint_error(emitted_law(p, cut(False), rule), p, 3, 3) <= EXACT
    assert joint_error(emitted_law(p, cut(True), rule), p, 3, 3) > KILLED


# --- randomness: what enumeration cannot see ---


def test_one_coin_for_all_positions_is_killed(monkeypatch):
    uniform = noise.uniform
    monkeypatch.setattr(tossed, "uniform", lambda seed, purpose, position, index: uniform(seed, purpose, position, 0))
    assert p_value(chains, "rejection", 1, 3, PLAIN, n=3000) < UNLIKELY


def test_the_same_coins_in_every_round_are_killed(monkeypatch):
    """A stream keyed by the round's own index and not by where the round stands in the text."""
    assert p_value(point_masses, "rejection", 1, 1, PLAIN) > 1e-4
    uniform = noise.uniform
    monkeypatch.setattr(tossed, "uniform", lambda seed, purpose, position, index: uniform(seed, purpose, 0, index))
    assert p_value(point_masses, "rejection", 1, 1, PLAIN) < UNLIKELY


def test_a_draft_drawn_with_the_noise_of_the_recovered_token_is_killed(monkeypatch):
    """One stream for draft and residual: they are no longer independent."""
    monkeypatch.setattr("specserve.verify.sparse.key", lambda s, purpose, t: noise.key(s, Purpose.RESIDUAL, t))
    monkeypatch.setattr("specserve.verify.sparse.substream", lambda k, index: k)
    assert p_value(chains, "rejection", 1, 1, PLAIN) < UNLIKELY


def test_drafts_that_are_not_independent_of_each_other_are_killed(monkeypatch):
    """Every chain drawn with the same index: K copies of one draft, judged as K i.i.d. ones."""
    monkeypatch.setattr("specserve.verify.sparse.substream", lambda k, index: k)
    assert p_value(chains, "kseq", 3, 2, PLAIN) < UNLIKELY


def test_penalties_that_forget_the_hypothesised_prefix_are_killed(monkeypatch):
    """They must count the drafted tokens before the node, not only the committed ones."""
    sampling = {"temperature": 1.0, "frequency_penalty": 2.0}
    assert p_value(chains, "rejection", 1, 3, sampling) > 1e-4
    monkeypatch.setattr("specserve.verify.case.Prefix", lambda committed, drafted=(): Prefix(committed))
    assert p_value(chains, "rejection", 1, 3, sampling) < UNLIKELY


def test_noise_of_the_round_in_the_place_of_the_position_is_killed(monkeypatch):
    """Noise keyed by the committed length alone: the text would depend on what was drafted."""
    target = torch.randn(3, 3, generator=torch.Generator().manual_seed(1))
    good, sampling, seeds = Drafter(target, 2, 2), {"temperature": 1.0}, range(60)
    with_drafts = generate(target, good, coupled_trees, "coupled", sampling, seeds)[0]
    without = generate(target, good, lambda d, s, h: [Draft() for _ in s], "coupled", sampling, seeds)[0]
    assert with_drafts == without
    monkeypatch.setattr(Prefix, "__len__", lambda self: len(self.committed))
    broken = generate(target, good, coupled_trees, "coupled", sampling, seeds)[0]
    assert broken != without


def test_the_suite_of_checks_covers_every_rule():
    assert set(DRAFTERS) == set(RULES)
