"""The drafter's side: the law that is reported is the law that was drawn from."""

import numpy as np
import pytest
import torch
from scipy import stats

from specserve.types import Sampling, SessionSpec, SparseLaw
from specserve.verify import draw_sparse, merge_chains, process

LOGITS = torch.randn(1, 500, generator=torch.Generator().manual_seed(0)) * 2


def spec(seed: int = 0, **parameters: object) -> SessionSpec:
    return SessionSpec(Sampling(seed=seed, **{"temperature": 1.0, **parameters}), 1, 99)  # type: ignore[arg-type]


def test_the_law_is_the_transform_s_64_largest_renormalised():
    parameters = {"temperature": 0.8, "repetition_penalty": 1.4}
    _, (law,) = draw_sparse(LOGITS, [spec(**parameters)], [[3, 5]], [(2, 0)])
    top = process(LOGITS, [spec(**parameters)], [[3, 5]]).double().topk(64)
    assert law.ids == tuple(top.indices[0].tolist())
    assert law.probs == pytest.approx(top.values.softmax(-1)[0].tolist(), rel=1e-6)
    assert all(float(np.float32(p)) == p for p in law.probs)  # nothing is lost on a wire of fp32


def test_truncation_shortens_the_law():
    _, (law,) = draw_sparse(LOGITS, [spec(top_k=5)], [[3]], [(1, 0)])
    assert len(law.ids) == 5
    (tokens,), _ = draw_sparse(LOGITS, [spec(top_k=5)], [[3]], [(1, 0)], count=9)
    assert sorted(tokens) == sorted(law.ids)


def test_at_temperature_0_the_argmax_has_a_law_of_one():
    (tokens,), (law,) = draw_sparse(LOGITS, [spec(temperature=0.0)], [[3]], [(1, 0)], count=3)
    assert tokens == law.ids == (int(LOGITS.argmax()),)
    assert law.probs == (1.0,)


def test_draws_follow_the_law_over_every_key():
    """χ² over draw indices, committed lengths and seeds. False alarms with fresh seeds: 3e-3."""
    n = 3000
    rows, one = LOGITS[:, :8].expand(n, 8), [spec()] * n
    runs = {
        "index": draw_sparse(rows, one, [[3]] * n, [(1, i) for i in range(n)]),
        "length": draw_sparse(rows, one, [[3]] * n, [(i, 0) for i in range(n)]),
        "seed": draw_sparse(rows, [spec(seed=i) for i in range(n)], [[3]] * n, [(1, 0)] * n),
    }
    for name, (drawn, laws) in runs.items():
        seen = np.bincount([laws[0].ids.index(tokens[0]) for tokens in drawn], minlength=8)
        expected = np.array(laws[0].probs) / sum(laws[0].probs) * n
        assert stats.chisquare(seen, expected).pvalue > 1e-3, name


def test_siblings_without_replacement_follow_their_law():
    """χ² of ordered pairs: q(a)·q(b)/(1 - q(a)). False alarms with fresh seeds: 1e-3."""
    n = 6000
    rows = torch.tensor([[1.0, 0.5, 0.0, -0.7]]).expand(n, 4)
    drawn, laws = draw_sparse(rows, [spec()] * n, [[3]] * n, [(1, i) for i in range(n)], count=2)
    q = dict(zip(laws[0].ids, laws[0].probs, strict=True))
    pairs = [(a, b) for a in q for b in q if a != b]
    seen = [sum(1 for tokens in drawn if tokens == pair) for pair in pairs]
    want = np.array([q[a] * q[b] / (1 - q[a]) for a, b in pairs])
    assert stats.chisquare(seen, want / want.sum() * n).pvalue > 1e-3


def test_two_drafters_of_one_session_draw_independently():
    """χ² of independence. False alarms with fresh seeds: 1e-3. Kills: the drafter's name left out of the key."""
    n = 4000
    rows, specs = LOGITS[:, :4].expand(n, 4), [spec(seed=i) for i in range(n)]
    a, b = (draw_sparse(rows, specs, [[3]] * n, [(1, 0)] * n, drafter=name)[0] for name in ("small", "tiny"))
    table = np.zeros((4, 4))
    for (x,), (y,) in zip(a, b, strict=True):
        table[x, y] += 1
    assert stats.chi2_contingency(table).pvalue > 1e-3


def test_merged_chains_share_beginnings_and_keep_what_was_drawn():
    q, r = SparseLaw((1, 2), (0.5, 0.5)), SparseLaw((1, 2), (0.25, 0.75))
    draft = merge_chains([(1, 2), (1, 1), (2, 1), (1, 2)], [(q, r)] * 4, "ar")
    assert draft.tokens == (1, 2, 1, 2, 1)
    assert draft.parents == (-1, 0, 0, -1, 3)
    assert draft.chains == ((0, 1), (0, 2), (3, 4), (0, 1))
    assert draft.laws == (q, r, r, q, r)
    assert draft.drafters == ("ar",) * 5
