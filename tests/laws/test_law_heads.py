"""Multi-token heads: their sequential law is the joint law, by enumeration in fp64; and what a wrong one would do."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from enumeration import emitted_law, iid_chains, joint_error, table
from torch import Tensor

from specserve.draft.heads import drafting
from specserve.draft.heads.model import Heads, Shape
from specserve.draft.plan import Plan
from specserve.types import Draft, Sampling, SessionSpec

V, N, WIDTH = 3, 4, 5
EXACT, KILLED = 1e-10, 1e-3


def random_heads(rank: int, low_rank: int | None = None) -> tuple[Heads, Tensor, Tensor]:
    """Heads, an unembedding and a hidden state, in fp64."""
    with torch.random.fork_rng():
        torch.manual_seed(rank)
        heads = Heads(Shape(WIDTH, V, N, rank, low_rank)).double().requires_grad_(False)
        for weight in heads.parameters():
            weight.copy_(torch.randn_like(weight))
        return heads, torch.randn(V, WIDTH).double(), torch.randn(1, WIDTH).double()


def joint(heads: Heads, unembedding: Tensor, hidden: Tensor) -> np.ndarray:
    """Slow oracle, straight from the definition: Σ_α w_α Π_s p_α^s(x_s), [V, ..., V]."""
    w = (heads.gate @ hidden[0]).softmax(-1)
    total = np.zeros((V,) * N)
    for a in range(heads.shape.rank):
        product = np.ones(())
        for s in range(N):
            own = heads.full[s, a] if heads.shape.low_rank is None else heads.up[s, a] @ heads.down[s, a]
            p = (unembedding @ (torch.eye(WIDTH) + own) @ hidden[0]).softmax(-1).numpy()
            product = np.multiply.outer(product, p)
        total += float(w[a]) * product
    return total


def sequential(heads: Heads, unembedding: Tensor, hidden: Tensor, y: int) -> dict[tuple[int, ...], np.ndarray]:
    """The law that drafts are drawn from after every path below an emitted token y, as the drafter gives it."""
    laws = drafting.Laws(heads, unembedding, N, list(range(V)), None, hidden)
    plan = Plan(1, SessionSpec(Sampling(temperature=1.0), 1, 9), [y], N - 1, 1, 9)
    laws.begin([plan])
    found = {}
    for depth in range(N - 1):
        for path in itertools.product(range(V), repeat=depth):
            logits = laws.look([plan], [Draft.chain(path)], [[depth - 1]])
            found[path] = logits.softmax(-1)[0].numpy()
    return found


def errors(rank: int, low_rank: int | None = None) -> float:
    """Largest difference between the product of sequential laws and the joint law given y, over all y and paths."""
    heads, unembedding, hidden = random_heads(rank, low_rank)
    law = joint(heads, unembedding, hidden)
    worst = 0.0
    for y in range(V):
        given = law[y] / law[y].sum()
        q = sequential(heads, unembedding, hidden, y)
        for path in itertools.product(range(V), repeat=N - 1):
            product = np.prod([q[path[:i]][x] for i, x in enumerate(path)])
            worst = max(worst, abs(float(product) - float(given[path])))
    return worst


@pytest.mark.parametrize(("rank", "low_rank"), [(1, None), (2, None), (4, 2), (8, None)])
def test_the_product_of_sequential_laws_is_the_joint_law_given_the_emitted_token(rank, low_rank):
    assert errors(rank, low_rank) <= EXACT


def skip(log_b: Tensor, log_p: Tensor) -> Tensor:
    """The planted bug: tokens that were seen change nothing."""
    return log_b + 0 * log_p


def test_a_drafter_that_skips_the_posterior_update_is_killed(monkeypatch):
    assert errors(3) <= EXACT
    monkeypatch.setattr(drafting, "posterior", skip)
    assert errors(1) <= EXACT, "independent heads have nothing to update"
    assert errors(3) > KILLED


@pytest.mark.parametrize("rule", ["rejection", "kseq"])
def test_reporting_the_law_without_the_update_breaks_the_output(rule, monkeypatch):
    """Drawn from the posterior's law, said to be drawn from the other: verification must not survive it."""
    heads, unembedding, hidden = random_heads(3)
    right = sequential(heads, unembedding, hidden, 0)
    monkeypatch.setattr(drafting, "posterior", skip)
    wrong = sequential(heads, unembedding, hidden, 0)
    p = table(np.random.default_rng(4), V, 2)
    chains = 1 if rule == "rejection" else 2
    assert joint_error(emitted_law(p, iid_chains(right, V, 2, chains), rule), p, V, 3) <= 1e-12
    assert joint_error(emitted_law(p, iid_chains(right, V, 2, chains, wrong), rule), p, V, 3) > KILLED


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_only_a_mixture_sees_the_token_that_is_emitted_already(rank):
    heads, unembedding, hidden = random_heads(rank)
    first, second = (sequential(heads, unembedding, hidden, y) for y in (0, 1))
    effect = max(float(np.abs(first[path] - second[path]).max()) for path in first)
    assert (effect < 1e-15) if rank == 1 else (effect > 1e-2)
