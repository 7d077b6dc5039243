"""The sampling transform against a slow oracle in plain Python, and the promises it makes about ties and batches."""

import math
from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specserve.types import Sampling, SessionSpec
from specserve.verify import Prefix, process
from specserve.verify.transform import restrict


def oracle(logits: Sequence[float], s: Sampling, history: Sequence[int], prompt_len: int) -> list[float]:
    """One row in fp64: probabilities after the transform (at T = 0 of the law before the argmax)."""
    x = list(logits)
    for v in set(history):
        x[v] = x[v] / s.repetition_penalty if x[v] > 0 else x[v] * s.repetition_penalty
    for v, n in Counter(history[prompt_len:]).items():
        x[v] -= s.frequency_penalty * n + s.presence_penalty
    for v, b in s.logit_bias.items():
        x[v] += b
    if s.temperature == 0:
        return softmax(x)
    x = [v / s.temperature for v in x]
    if 0 < s.top_k < len(x):
        kth = sorted(x, reverse=True)[s.top_k - 1]
        x = [v if v >= kth else -math.inf for v in x]
    if s.top_p < 1:
        mass, cut = 0.0, math.inf
        for prob, v in sorted(zip(softmax(x), x, strict=True), reverse=True):
            if mass < s.top_p:
                mass, cut = mass + prob, v
        x = [v if v >= cut else -math.inf for v in x]
    if s.min_p > 0:
        top = max(x)
        x = [v if v >= top + math.log(s.min_p) else -math.inf for v in x]
    return softmax(x)


def softmax(x: Sequence[float]) -> list[float]:
    top = max(x)
    e = [math.exp(v - top) for v in x]
    return [v / sum(e) for v in e]


def spec(prompt_len: int = 0, **parameters: object) -> SessionSpec:
    return SessionSpec(Sampling(**parameters), prompt_len, 64)  # type: ignore[arg-type]


V = 11
SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 1.7]),
    top_p=st.sampled_from([1.0, 0.93, 0.51, 0.07]),
    top_k=st.sampled_from([0, 1, 3, 7, 50]),
    min_p=st.sampled_from([0.0, 0.03, 0.4]),
    presence_penalty=st.sampled_from([0.0, 0.7, -0.5]),
    frequency_penalty=st.sampled_from([0.0, 0.3]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.8]),
    logit_bias=st.dictionaries(st.integers(0, V - 1), st.floats(-9, 9), max_size=3),
)
ROW = st.tuples(SAMPLINGS, st.lists(st.integers(0, V - 1), max_size=9), st.lists(st.integers(0, V - 1), max_size=3))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(rows=st.lists(ROW, min_size=1, max_size=5), seed=st.integers(0, 2**31))
def test_every_row_follows_its_own_parameters(rows, seed):
    """A batch of rows with different parameters equals the oracle row by row, and the input is left alone."""
    logits = torch.randn(len(rows), V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3
    before = logits.clone()
    specs = [SessionSpec(s, len(committed) // 2, 64) for s, committed, _ in rows]
    histories = [Prefix(committed, tuple(drafted)) for _, committed, drafted in rows]
    got = process(logits, specs, histories).softmax(-1)
    want = [oracle(logits[i].tolist(), s, [*c, *d], len(c) // 2) for i, (s, c, d) in enumerate(rows)]
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64), rtol=1e-9, atol=1e-12)
    assert torch.equal(logits, before)


def test_the_hypothesised_prefix_counts_as_output():
    """Kills: penalties from committed tokens only."""
    logits = torch.zeros(1, 4)
    got = process(logits, [spec(prompt_len=1, frequency_penalty=1.0)], [Prefix([3, 0], (0, 2))])
    assert got.tolist() == [[-2.0, 0.0, -1.0, 0.0]]


def test_nothing_active_returns_the_logits_themselves():
    """The greedy fast path: no copy, no softmax."""
    logits = torch.randn(3, 8)
    assert process(logits, [spec()] * 3, [[1]] * 3) is logits
    assert process(logits, [spec(top_k=3, top_p=0.5)] * 3, [[1]] * 3) is logits  # T = 0: truncation changes nothing


@pytest.mark.parametrize("parameters", [{"top_k": 2}, {"top_p": 0.5}])
def test_ties_with_the_last_kept_token_stay(parameters):
    """The kept set is a function of the values: permuting the vocabulary permutes the law."""
    logits = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0]])
    kept = process(logits, [spec(temperature=1.0, **parameters)], [[]]).isfinite()
    assert kept.tolist() == [[True, True, True, True, False]]


def test_a_flat_law_falls_back_to_the_whole_vocabulary_for_top_p():
    """top-p 0.9 of a nearly uniform law over 5000 ids keeps about 4500, however few candidates are tried first."""
    logits = torch.randn(2, 5000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1e-3
    logits[1, 7] = 20.0
    kept = process(logits, [spec(temperature=1.0, top_p=0.9)] * 2, [[]] * 2).isfinite().sum(-1).tolist()
    want = [sum(p > 0 for p in oracle(row, Sampling(temperature=1.0, top_p=0.9), [], 0)) for row in logits.tolist()]
    assert kept == want
    assert kept[0] > 4400
    assert kept[1] == 1


def test_a_tiny_temperature_does_not_overflow():
    got = process(torch.tensor([[500.0, 400.0, -500.0]]), [spec(temperature=1e-38)], [[]])
    assert got.softmax(-1).tolist() == [[1.0, 0.0, 0.0]]


def test_masked_logits_stay_masked_under_every_parameter():
    """-inf (a grammar's mask) is a legitimate logit."""
    logits = torch.tensor([[1.0, -math.inf, 0.5]])
    parameters = {"temperature": 0.7, "top_k": 3, "top_p": 0.99, "repetition_penalty": 1.2, "presence_penalty": 0.1}
    got = process(logits, [spec(**parameters)], [[0, 1]]).softmax(-1)
    assert got[0, 1] == 0
    assert float(got.sum()) == pytest.approx(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_mask_takes_away_what_it_forbids_and_hides_no_broken_logit(dtype):
    """Bit v % 8 of byte v // 8, from the lowest; unmasked rows stay; NaN and infinity at a forbidden token stay bad."""
    logits = torch.arange(44, dtype=dtype).reshape(4, 11)
    before = logits.clone()
    one, two = torch.tensor([[0b00000101, 0b11111010]], dtype=torch.uint8), torch.tensor([[2, 0], [0, 255]]).byte()
    got = restrict(logits, [(0, one), (2, two)])
    assert [row.isfinite().nonzero()[:, 0].tolist() for row in got] == [[0, 2, 9], list(range(11)), [1], [8, 9, 10]]
    assert torch.equal(got[got.isfinite()], before[got.isfinite()])
    assert torch.equal(got[1], before[1])
    assert torch.equal(restrict(logits[2:], [(0, two)]), got[2:])
    assert torch.equal(logits, before)
    logits[0, 1], logits[2, 0] = math.nan, math.inf
    assert restrict(logits, [(0, one), (2, two)]).isnan().nonzero().tolist() == [[0, 1], [2, 0]]


def test_a_prefix_is_the_sequence_it_stands_for():
    prefix = Prefix([5, 6], (7, 8))
    assert (len(prefix), list(prefix), prefix[-1], list(prefix[1:3])) == (4, [5, 6, 7, 8], 8, [6, 7])
