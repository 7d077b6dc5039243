"""What a drafted node is worth: how often nodes like it were the target's token."""

from __future__ import annotations

import numpy as np

from specserve.draft.ngram.history import Counts
from specserve.draft.ngram.rows import EVIDENCE, STRATEGIES, Flags, Shares

_SIBLINGS = 4
_DEPTHS = 6
# Hopes at depth 1 for a node without older siblings, by evidence; a few trials overrule them.
_HOPES = {
    "context": (0.3, 0.2, 0.4, 0.6, 0.45, 0.3, 0.5, 0.7, 0.6, 0.4, 0.6, 0.8, 0.6, 0.4, 0.6, 0.8),
    "suffix": (0.5, 0.4, 0.6, 0.7, 0.7, 0.5, 0.7, 0.8, 0.8, 0.6, 0.8, 0.9, 0.9, 0.7, 0.9, 0.95),
    "bigram": (0.03, 0.08, 0.15, 0.25, 0.35, 0.5, 0.65, 0.85),
    "recycled": (0.3, 0.15, 0.1, 0.05),
    "unigram": (0.05, 0.03, 0.02, 0.01),
}
_YOUNGER = (1.0, 0.4, 0.2, 0.1)
_FIRM = 4.0  # trials that a hope is worth
_OWN = 2.0  # variance that a session's own record must outweigh
_FAR = 3.0  # most that it moves log odds
_KEEP = 0.995  # of old trials, per batch that was observed
_MOST = 0.98  # below 1, so that a child is always worth less than its parent


class Payoff:
    """Acceptance by strategy, evidence, older siblings and depth over all sessions; each session corrects it.

    A node counts as tried when its parent was the target's text: verification shows the target's own token there, so
    that rows learn whether they were drafted or only offered. Nothing has to be explored.

    The session's correction is one shift of log odds per strategy, the first step of its maximum likelihood: accepted
    less expected, over the variance of that.
    """

    def __init__(self, strategy: Counts) -> None:
        """strategy: of each row of a batch its place in STRATEGIES, [K]."""
        self._group = strategy[:, None] * EVIDENCE
        self._strategy = strategy
        self._of = np.equal.outer(strategy, np.arange(len(STRATEGIES))).astype(float)  # [K, strategies]
        hopes = np.zeros((len(STRATEGIES), EVIDENCE, _SIBLINGS, _DEPTHS))
        for place, name in enumerate(STRATEGIES):
            known = np.asarray(_HOPES[name])
            hopes[place, :, :, :] = known[np.minimum(np.arange(EVIDENCE), len(known) - 1)][:, None, None]
        hopes *= np.asarray(_YOUNGER)[:, None]
        hopes = 1 - (1 - hopes) * 0.85 ** np.arange(_DEPTHS)  # who got so far goes on
        self._hopes = hopes.reshape(-1)
        self._hits, self._trials = np.zeros_like(self._hopes), np.zeros_like(self._hopes)
        self._rates = self._hopes.copy()

    @staticmethod
    def fresh() -> Shares:
        """A session's record of each strategy: accepted less expected, and the variance of that, [2, strategies]."""
        return np.outer((0.0, _OWN), np.ones(len(STRATEGIES)))

    def keys(self, evidence: Counts, siblings: Counts) -> Counts:
        """The class of every node, [S, K, W]; `siblings` counts its older ones."""
        depth = np.minimum(np.log2(np.arange(1, evidence.shape[-1] + 1)).astype(np.int64), _DEPTHS - 1)
        siblings = np.minimum(siblings, _SIBLINGS - 1)
        return ((self._group + evidence) * _SIBLINGS + siblings) * _DEPTHS + depth

    def rates(self, keys: Counts, records: Shares) -> Shares:
        """P(node is the target's token | its parent was), [S, K, W], given records [S, 2, strategies]."""
        odds = np.exp(np.clip(records[:, 0] / records[:, 1], -_FAR, _FAR))[:, self._strategy, None]
        rates = self._rates[keys]
        corrected: Shares = np.minimum(rates * odds / (1 - rates + rates * odds), _MOST)
        return corrected

    def observe(self, keys: Counts, right: Flags, known: Flags) -> Shares:
        """The target's text has gone on.

        Args:
            keys: as given by `keys`, [S, K, W]; below 0 for nodes that are none or count elsewhere.
            right: whether the row is the text up to here, [S, K, W].
            known: whether the text has got to this depth, [S, 1, W].
        Returns:
            what the sessions' records grow by, [S, 2, strategies].
        """
        tried = (keys >= 0) & known
        tried[:, :, 1:] &= right[:, :, :-1]
        hit = tried & right
        grown = np.empty((len(keys), 2, len(STRATEGIES)))
        expected = np.where(tried, self._rates[keys], 0.0)
        grown[:, 0] = (hit - expected).sum(-1) @ self._of
        grown[:, 1] = (expected * (1 - expected)).sum(-1) @ self._of
        size = len(self._hopes)
        self._hits = _KEEP * self._hits + np.bincount(keys[hit], minlength=size)
        self._trials = _KEEP * self._trials + np.bincount(keys[tried], minlength=size)
        self._rates = (self._hits + _FIRM * self._hopes) / (self._trials + _FIRM)
        return grown

    def summary(self) -> dict[str, float]:
        """Of each strategy that was tried, the acceptance of its nodes without older siblings at depths 1, 2 and 4."""
        shape = (len(STRATEGIES), EVIDENCE, _SIBLINGS, _DEPTHS)
        hits, trials = (part.reshape(shape)[:, :, 0].sum(1) for part in (self._hits, self._trials))
        return {
            f"{name}_acceptance_at_{2**depth}": float(hits[place, depth] / trials[place, depth])
            for place, name in enumerate(STRATEGIES)
            for depth in range(3)
            if trials[place, depth] >= 1
        }
