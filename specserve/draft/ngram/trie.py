"""Rows merged into one trie per session, and the part of it that is worth verifying."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from specserve.draft.ngram.history import Counts
from specserve.draft.ngram.rows import Flags, Rows, Shares, prefixes
from specserve.types import Draft


@dataclass(slots=True)
class Trie:
    """Equal prefixes of a session's rows are one node; it belongs to the first row that has it.

    Args:
        same: rows j and i agree up to depth w, [K, S, K, W] by j, s, i, w.
        first: the row to which row i's node at depth w belongs, [S, K, W].
        own: whether that is row i itself.
        again: whether an earlier row of the same strategy has it, too.
        siblings: how many of the node's siblings belong to earlier rows.
    """

    same: Flags
    first: Counts
    own: Flags
    again: Flags
    siblings: Counts


def merge_rows(rows: Rows) -> Trie:
    """The tries of S sessions."""
    k, number = rows.tokens.shape[1], np.arange(rows.tokens.shape[1], dtype=np.uint8)
    path, some = prefixes(rows.tokens), rows.tokens >= 0
    by_row = path.transpose(1, 0, 2)
    same = (by_row[:, :, None] == path) & some
    first = (k - (same * (k - number)[:, None, None, None]).max(0)) % k
    own = some & (first == number[:, None])
    again = (same & (np.tri(k, k=-1, dtype=bool).T & (rows.strategy[:, None] == rows.strategy))[:, None, :, None]).any(
        0
    )
    # Siblings: nodes of earlier rows with the same parent. Row i's node is row first[i]'s.
    kin = np.empty_like(same)
    kin[..., 0] = True
    kin[..., 1:] = same[..., :-1]
    kin &= own.transpose(1, 0, 2)[:, :, None]
    kin &= number[:, None, None, None] < first
    return Trie(same, first.astype(np.int64), own, again, kin.sum(0, dtype=np.uint8).astype(np.int64))


def values(trie: Trie, rates: Shares, depths: Counts, branches: Counts) -> Shares:
    """P(the target's text gets to the node), [S, K, W]; 0 where there is none, or none may be.

    A node that several strategies offer has the best of their rates.

    Args:
        rates: P(node | parent), [S, K, W].
        depths, branches: most of each session, [S]; of a node's children the first `branches` may be drafted.
    """
    best = (trie.same * rates.transpose(1, 0, 2)[:, :, None]).max(0)
    best *= trie.siblings < branches[:, None, None]
    best *= np.arange(best.shape[-1]) < depths[:, None, None]
    return np.multiply.accumulate(best, -1)


def cut(rows: Rows, trie: Trie, value: Shares, nodes: Sequence[int], name: str) -> tuple[list[Draft], Flags]:
    """The nodes of most value, best first: every beginning of a draft is the best trie of that size.

    Args:
        value: [S, K, W], 0 for what is not wanted; falls from parent to child.
        nodes: most nodes of each session.
    Returns:
        the drafts, and which nodes of the rows are in them, [S, K, W].
    """
    s, k, width = value.shape
    flat = np.where(trie.own, value, 0.0).reshape(s, k * width)
    order = np.argsort(-flat, axis=1, kind="stable")
    count = np.minimum((flat > 0).sum(1), nodes)
    place = np.empty_like(order)
    np.put_along_axis(place, order, np.arange(k * width)[None], 1)
    above = np.empty((s, k, width), np.int64)  # the parent's place in `flat`
    above[:, :, 0] = -1
    above[:, :, 1:] = trie.first[:, :, :-1] * width + np.arange(width - 1)
    above = np.take_along_axis(above.reshape(s, k * width), order, 1)
    parents = np.where(above < 0, -1, np.take_along_axis(place, np.maximum(above, 0), 1))
    tokens = np.take_along_axis(rows.tokens.reshape(s, k * width), order, 1)
    drafts = []
    for some, up, n in zip(tokens.tolist(), parents.tolist(), count.tolist(), strict=True):
        drafts.append(Draft(tuple(some[:n]), tuple(up[:n]), (name,) * n))
    chosen = (place < count[:, None]).reshape(s, k, width)
    return drafts, chosen
