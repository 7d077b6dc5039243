"""Rows: the k × w tokens that strategies offer for a round, and how copied ones are chosen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specserve.draft.ngram.history import SEAM, Counts, Ids
from specserve.types import NGRAM_STRATEGIES

STRATEGIES = NGRAM_STRATEGIES
"""In the order in which they are merged: a node that several offer is the first one's.

context: what followed the last few tokens in the request's text and its reference, by count, then recency.
suffix: what followed the longest agreement, in the same text and in the tenant's past outputs.
bigram: the target's successors of the last token, each gone on with by bigrams, or greedily where the table says so.
recycled: the latest successors of the last token in the tenant's outputs, gone on with likewise.
unigram: the target's commonest tokens, gone on with by bigrams. Weak; not in the default mix.
"""
EVIDENCE = 16
"""How strong a node's evidence is, from 0; what it means is the strategy's own business."""

Shares = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(slots=True)
class Rows:
    """What is offered to S sessions.

    Args:
        tokens: [S, K, W]; SEAM from where a row has ended.
        evidence: [S, K, W], below EVIDENCE.
        strategy: of each row its place in STRATEGIES, [K], ascending.
    """

    tokens: Ids
    evidence: Counts
    strategy: Counts

    @staticmethod
    def none(sessions: int, width: int, strategy: Counts) -> Rows:
        shape = (sessions, len(strategy), width)
        return Rows(np.full(shape, SEAM, np.int32), np.zeros(shape, np.int64), strategy)


_MIX = np.random.default_rng(2411).integers(1, 1 << 63, 64, np.uint64) * 2 + 1


def prefixes(tokens: Ids) -> NDArray[np.uint64]:
    """A number for every prefix, equal where those are (and once in 2^64 where they are not), [..., W]."""
    return np.cumsum((tokens + 2).astype(np.uint64) * _MIX[: tokens.shape[-1]], -1, np.uint64)


def vote(windows: Ids, tier: Counts, rows: int) -> tuple[Ids, Counts]:
    """The rows that windows of text speak for.

    Windows vote on every prefix; one of a higher tier outweighs all of lower ones together. The next row is always
    the one that adds the largest sum of votes over its prefixes: the longest expected match if the text goes on as one
    of the windows does. For w = 1 that is ranking by count; of equals the first window is taken.

    Args:
        windows: [N, M, W], SEAM where one ends; those of an equal tier the latest first.
        tier: [N, M] from 0; -1 for no window.
    Returns:
        tokens [N, rows, W] and evidence [N, rows, W]: 4 · the row's tier (at most 3), plus 0 where the node continues
        a single window, else by the share of the votes that it has of its parent's: 1 below half, 3 from 0.9.
    """
    n, m, width = windows.shape
    some = np.logical_and.accumulate((windows >= 0) & (tier >= 0)[:, :, None], -1)
    path = prefixes(windows)
    same = path[:, :, None] == path[:, None]
    weight = np.where(tier >= 0, (m + 1.0) ** tier, 0.0)
    votes = (weight[:, None] @ same.reshape(n, m, m * width)).reshape(n, m, width)
    parent = np.empty_like(votes)
    parent[:, :, 1:] = votes[:, :, :-1]
    parent[:, :, 0] = weight.sum(-1, keepdims=True)
    share = votes / np.maximum(parent, 1.0)
    grade = 1 + (share >= 0.5) + (share >= 0.9)
    grade[parent == weight[:, :, None]] = 0
    grade += 4 * np.minimum(tier, 3)[:, :, None]

    tokens = np.full((n, rows, width), SEAM, np.int32)
    evidence = np.zeros((n, rows, width), np.int64)
    windows = np.where(some, windows, np.int32(SEAM))
    left, every = votes * some, np.arange(n)
    for row in range(rows):
        gain = left.sum(-1)
        best = gain.argmax(-1)
        good = gain[every, best] > 0
        if not good.any():
            break
        tokens[good, row], evidence[good, row] = windows[every, best][good], grade[every, best][good]
        left *= ~same[every, best]
    return tokens, evidence
