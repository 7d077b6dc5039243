"""Rules that look at several drafts of one position, from the root down: `kseq` and `recursive`."""

from __future__ import annotations

import bisect
import math

import numpy as np

from specserve.verify.law import Coin, Emission, Fork, Law, Tree, Weights, without


def kseq(tree: Tree, coin: Coin) -> Emission:
    """SpecTr's sequence-level selection over i.i.d. chains.   (Sun et al., 2310.15141, algorithms 2 and 3)

    At each depth: the next tokens of the chains that agree with what was accepted, in order, each accepted with
    probability min(1, p/(ρ·q)), ρ for their number; if none, emit from norm(p - min(q, p/ρ)·(1 - (1 - β)^K)/β).
    """
    path: list[int] = []
    node = -1
    while fork := tree.forks.get(node):
        q = fork.children[0].q
        k = len(fork.children)
        rho = least_rho(fork, q, k)
        for child in fork.children:
            if coin(fork.p[child.at] / (rho * q[child.at])):
                node = child.node
                path.append(node)
                break
        else:
            return Emission(tuple(path), kseq_residual(fork, q, k, rho))
    return Emission(tuple(path))


def kseq_residual(fork: Fork, q: Weights, k: int, rho: float) -> Law:
    """Law to draw from after k rejections: p less what was accepted of each token."""
    common = np.minimum(q, fork.p / rho)
    beta = min(1.0, float(common.sum()))
    share = some(beta, k) / beta if beta > 0.0 else float(k)
    weights = np.maximum(fork.p - common * share, 0.0)
    mass = float(weights.sum()) + fork.outside
    return Law(fork, weights / mass, 1.0 / mass) if mass > 0.0 else fork.law


def least_rho(fork: Fork, q: Weights, k: int) -> float:
    """The ρ in [1, k] with 1 - (1 - β)^k = ρβ, β(ρ) = Σ min(q, p/ρ), from above: any smaller one would be biased."""
    if k == 1:
        return 1.0
    support = q > 0.0
    p_on, q_on = fork.p[support], q[support]
    ratio = p_on / q_on
    order = np.argsort(ratio)
    cuts = ratio[order].tolist()  # β(ρ) is Σp/ρ below the cut and Σq above it
    below = [0.0, *np.cumsum(p_on[order]).tolist()]
    above = [*np.cumsum(q_on[order][::-1])[::-1].tolist(), 0.0]
    low, high = 1.0, float(k)
    while True:
        rho = 0.5 * (low + high)
        if not low < rho < high:
            return high
        at = bisect.bisect_left(cuts, rho)
        beta = min(1.0, below[at] / rho + above[at])
        if some(beta, k) > rho * beta:
            low = rho
        else:
            high = rho


def some(beta: float, k: int) -> float:
    """1 - (1 - β)^k, the probability that at least one of k comes."""
    return 1.0 if beta >= 1.0 else -math.expm1(k * math.log1p(-beta))


def recursive(tree: Tree, coin: Coin, replacement: bool = True) -> Emission:
    """Recursive rejection: each child against what the rejection of its elder siblings left of p.

    Accept with probability min(1, p/q); else p ← norm((p - q)+), and of siblings drawn without replacement
    q(x) ← 0, q ← norm(q). Emit from the last p.   (SpecInfer, 2305.09781; without replacement: Sequoia, 2402.12374)
    """
    path: list[int] = []
    node = -1
    while fork := tree.forks.get(node):
        law = fork.law
        drawn: dict[int, Weights] = {}
        for child in fork.children:
            q = drawn.get(child.source, child.q)
            if coin(law.weights[child.at] / q[child.at]):
                node = child.node
                path.append(node)
                break
            law = law.residual(q)[1]
            drawn[child.source] = q if replacement else without(q, child.at)
        else:
            return Emission(tuple(path), law)
    return Emission(tuple(path))
