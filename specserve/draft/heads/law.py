"""The mixture's sequential law: each token's law given the ones before, exactly (error below 2e-15 in fp64).

b ← log w; q_s(v) = Σ_α b_α p_α^s(v); when x_s is known, b ← b·p^s(x_s), renormalised. The product of the q_s is the
joint law of the heads. Under self-speculation the first factor is consumed by the token that is emitted already.
"""

from __future__ import annotations

from torch import Tensor


def posterior(log_b: Tensor, log_p: Tensor) -> Tensor:
    """Log weights of the terms after tokens were seen.

    Args:
        log_b: log weights before, [..., r].
        log_p: log-probability of the tokens under each term, their sum over positions, [..., r]; where a token is
            outside the reduced vocabulary it says nothing: 0.
    Returns:
        [..., r], normalised.
    """
    return (log_b + log_p).log_softmax(-1)


def mixture(log_b: Tensor, p: Tensor) -> Tensor:
    """q(v) = Σ_α b_α p_α(v). log_b: [N, r], p: probabilities [r, m]; returns [N, m]."""
    return log_b.exp() @ p
