"""The counter-based noise: what it is, that it is uniform, independent and precise. All seeds are pinned."""

import math

import numpy as np
import torch
from scipy import stats

from specserve.verify import noise
from specserve.verify.noise import Purpose, key, log_arrivals, uniform

GOLDEN_KEYS = [2558736989570252433, 6613826490168645378]
GOLDEN_UNIFORM = 0.6937504556966564
GOLDEN_LOG_ARRIVALS = [
    -0.7841584086418152,
    -3.4993371963500977,
    -1.4188696146011353,
    0.06809043139219284,
    0.13947619497776031,
]


def keys(n: int, seed: int = 0) -> list[int]:
    return [key(seed, Purpose.TOKEN, t) for t in range(n)]


def arrivals(n: int, vocab: int, seed: int = 0) -> np.ndarray:
    return noise.arrivals(keys(n, seed), vocab).numpy().astype(np.float64)


def test_golden_values_never_change():
    """A seed means the same text in every release: the bits are part of the interface."""
    assert key(0, Purpose.TOKEN, 0) == GOLDEN_KEYS[0]
    assert key(-1, Purpose.DRAFT, 123_456) == GOLDEN_KEYS[1]
    assert key(2**64 - 1, Purpose.DRAFT, 123_456) == GOLDEN_KEYS[1]
    assert uniform(7, Purpose.ACCEPT, 11, 3) == GOLDEN_UNIFORM
    got = log_arrivals([key(42, Purpose.TOKEN, 5)], 50_000)[0, [0, 1, 2, 4095, 49_999]]
    torch.testing.assert_close(got, torch.tensor(GOLDEN_LOG_ARRIVALS), rtol=1e-6, atol=0)


def test_a_draw_does_not_depend_on_the_batch_or_the_vocabulary_around_it():
    whole = log_arrivals(keys(9), 5003)
    for row in (0, 4, 8):
        alone = log_arrivals([keys(9)[row]], 5003)[0]
        assert torch.equal(alone, whole[row])
        assert torch.equal(log_arrivals([keys(9)[row]], 77)[0], whole[row, :77])
    ids = torch.tensor([[5, 0, 4999]] * 9)
    assert torch.equal(log_arrivals(keys(9), ids), whole[:, [5, 0, 4999]])


def test_arrivals_are_exponential():
    """KS over 2M values, pinned seed. False-alarm rate of a fresh seed: 1e-3."""
    assert stats.kstest(arrivals(64, 32_000).ravel(), "expon").pvalue > 1e-3


def test_uniforms_are_uniform_along_every_index():
    """KS along position, index, seed and purpose. False-alarm rate of fresh seeds: 4e-3."""
    n = range(4000)
    assert stats.kstest([uniform(1, Purpose.ACCEPT, t, 0) for t in n], "uniform").pvalue > 1e-3
    assert stats.kstest([uniform(1, Purpose.ACCEPT, 0, i) for i in n], "uniform").pvalue > 1e-3
    assert stats.kstest([uniform(s, Purpose.ACCEPT, 3, 1) for s in n], "uniform").pvalue > 1e-3
    assert stats.kstest([uniform(s, Purpose.RESIDUAL, 3, 1) for s in n], "uniform").pvalue > 1e-3


def test_neighbours_are_independent():
    """χ² on a 16 x 16 table of pairs: next token, next position, next seed, other purpose. False-alarm rate: 4e-3."""
    base = arrivals(40, 4096)
    other_purpose = np.exp(log_arrivals([key(0, Purpose.DRAFT, t) for t in range(40)], 4096).numpy())
    pairs = {
        "token": (base[:, :-1], base[:, 1:]),
        "position": (base[:-1], base[1:]),
        "seed": (base, arrivals(40, 4096, seed=1)),
        "purpose": (base, other_purpose),
    }
    for name, (a, b) in pairs.items():
        cell = [np.minimum((np.exp(-x) * 16).astype(int), 15).ravel() for x in (a, b)]
        table = np.bincount(cell[0] * 16 + cell[1], minlength=256)
        assert stats.chisquare(table).pvalue > 1e-3, name


def test_the_winner_follows_the_law():
    """χ² of 40,000 races against a Zipf law over 50 ids. False-alarm rate of a fresh seed: 1e-3."""
    p = 1 / np.arange(1, 51)
    p /= p.sum()
    race = torch.from_numpy(np.log(p)).float() - log_arrivals(keys(40_000, seed=3), 50)
    wins = np.bincount(race.argmax(-1).numpy(), minlength=50)
    assert stats.chisquare(wins, 40_000 * p).pvalue > 1e-3


def test_rare_tokens_keep_their_probability():
    """P(E < x) = x down to x = 2⁻³⁸, far below one hash cell: counted by walking the refined cells only.

    Kills: no second word (u on a grid of 2⁻³¹; nothing at all would fall below 2⁻³²).
    """
    hashes = torch.zeros((2000, 1), dtype=torch.int32)
    out = torch.zeros((2000, 1))
    noise._refine(out, hashes, keys(2000), 1)
    u = out.numpy().astype(np.float64).ravel() * 2.0**31  # E = u to first order, uniform on one cell
    assert stats.kstest(u, "uniform").pvalue > 1e-3
    assert u.min() > 0


def test_no_value_is_infinite_at_the_ends_of_the_hash():
    """The largest and smallest hashes give finite noise: u is never 0 nor 1."""
    x = torch.tensor([[0, 1, 2**31 - 1]], dtype=torch.int32)
    e = x.float().add_(0.5).mul_(-noise._SCALE).log1p_().neg_()
    assert math.isfinite(float(e.log().sum()))
    assert float(e[0, 2]) > 16
    assert 0 < noise._unit(0) < noise._unit(2**64 - 1) < 1
