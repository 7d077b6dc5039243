"""The closed form of the best acceptance against the linear programme it solves."""

import itertools

import numpy as np
import pytest
from scipy.optimize import linprog

from specserve.verify import optimum


def transport(p: np.ndarray, q: np.ndarray, k: int) -> float:
    """Largest mass that can move from draft tuples to a token in the tuple, within p: the definition."""
    tuples = list(itertools.product(range(len(p)), repeat=k))
    moves = [(t, y) for t in range(len(tuples)) for y in sorted(set(tuples[t]))]
    limits = np.concatenate([[np.prod(q[list(t)]) for t in tuples], p])
    rows = np.zeros((len(limits), len(moves)))
    for column, (t, y) in enumerate(moves):
        rows[t, column] = rows[len(tuples) + y, column] = 1
    return -linprog(-np.ones(len(moves)), A_ub=rows, b_ub=limits, bounds=(0, None), method="highs").fun


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_closed_form_is_the_optimal_transport(k):
    rng = np.random.default_rng(k)
    for _ in range(8):
        p, q = (rng.dirichlet(np.full(4, 0.6)) * (rng.random(4) > 0.2) + 1e-3 for _ in range(2))
        p, q = p / p.sum(), q / q.sum()
        q[0] = 0.0
        q /= q.sum()
        assert optimum(p, q, k) == pytest.approx(transport(p, q, k), abs=1e-9)


def test_the_extremes():
    assert optimum([0.2, 0.8], [0.2, 0.8], 1) == pytest.approx(1)
    assert optimum([1.0, 0.0], [0.0, 1.0], 5) == pytest.approx(0)
    assert optimum([0.5, 0.5], [0.9, 0.1], 50) == pytest.approx(1, abs=0.01)
