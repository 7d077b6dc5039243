"""The best acceptance any exact rule can have: the yardstick of the others."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def optimum(p: ArrayLike, q: ArrayLike, k: int) -> float:
    """Largest probability that one of k i.i.d. drafts from q can be accepted when the output follows p.

    α* = 1 + min over H of [p(H) - q(H)^k], H a prefix of the tokens by p/q ascending.
    (optimal transport with membership cost: Sun et al., 2310.15141; closed form: Hu et al., 2025)

    Args:
        p, q: probabilities, [V].
        k: number of drafts, at least 1. For k = 1 it is 1 - TV(p, q).
    """
    target, draft = np.asarray(p, dtype=np.float64), np.asarray(q, dtype=np.float64)
    ratio = np.divide(target, draft, out=np.full_like(target, np.inf), where=draft > 0)
    order = np.argsort(ratio, kind="stable")
    gap = np.cumsum(target[order]) - np.minimum(np.cumsum(draft[order]), 1.0) ** k
    return 1.0 + min(0.0, float(gap.min()))
