"""Drafts without replacement: siblings are distinct, and the shape of the tree is fixed before anything is drawn."""

from __future__ import annotations

import functools
import heapq
from collections.abc import Sequence

from specserve.draft.plan import Look, Plan
from specserve.types import Draft, SparseLaw
from specserve.verify import draw_sparse


@functools.lru_cache(maxsize=256)
def shape(branches: int, depth: int, nodes: int) -> tuple[tuple[int, int], ...]:
    """The best tree where a sibling's order alone says how often it is accepted.   (Sequoia, 2402.12374)

    The r-th sibling, from 1, counts as accepted with probability 0.6/r², near what is met in practice (together 0.6,
    0.75 and 0.88 of 1, 2 and 6 siblings). It does not look at tokens: what is admitted may not depend on them.

    Returns:
        (parent, depth) of every place, from 1, best first; parent -1 is the last committed token. Children of a place
        are in the order they are to be drawn.
    """
    best: list[tuple[int, int]] = []
    waiting = [(-0.6, 0, -1, 1, 1)]  # minus its value, a tie-break, parent, which sibling, depth
    met = 1
    while waiting and len(best) < nodes:
        value, _, parent, rank, at = heapq.heappop(waiting)
        if rank < branches:
            heapq.heappush(waiting, (value * (rank / (rank + 1)) ** 2, met, parent, rank + 1, at))
        if at < depth:
            heapq.heappush(waiting, (value * 0.6, met + 1, len(best), 1, at + 1))
        met += 2
        best.append((parent, at))
    return tuple(best)


def draw_siblings(look: Look, plans: Sequence[Plan], name: str) -> list[Draft]:
    """A tree per session, each node's children drawn without replacement. Laws that are short leave places empty."""
    shapes = [shape(plan.branches, plan.depth, plan.nodes) for plan in plans]
    drafts = [Draft(laws=()) for _ in plans]
    at: list[dict[int, int]] = [{-1: -1} for _ in plans]  # node drawn at each place
    for depth in range(1, max(plan.depth for plan in plans) + 1):
        places = [[place for place, (_, deep) in enumerate(some) if deep == depth] for some in shapes]
        parents = [sorted({shapes[i][place][0] for place in some} & set(at[i])) for i, some in enumerate(places)]
        live = [i for i, some in enumerate(parents) if some]
        if not live:
            break
        wanted = [[at[i][parent] for parent in parents[i]] for i in live]
        logits = look([plans[i] for i in live], [drafts[i] for i in live], wanted)
        asked = [(i, parent) for i in live for parent in parents[i]]
        paths = [tuple(drafts[i].tokens[node] for node in drafts[i].path(at[i][parent])) for i, parent in asked]
        tokens, laws = draw_sparse(
            logits,
            [plans[i].spec for i, _ in asked],
            [plans[i].prefix(path) for (i, _), path in zip(asked, paths, strict=True)],
            [(len(plans[i].tokens), parent + 1) for i, parent in asked],
            drafter=name,
            count=max(plan.branches for plan in plans),
        )
        for (i, parent), drawn, law in zip(asked, tokens, laws, strict=True):
            mine = [place for place in places[i] if shapes[i][place][0] == parent]
            for place, token in zip(mine, drawn, strict=False):
                drafts[i], at[i][place] = _with(drafts[i], token, at[i][parent], law, name), len(drafts[i])
    return drafts


def _with(draft: Draft, token: int, parent: int, law: SparseLaw, name: str) -> Draft:
    return Draft((*draft.tokens, token), (*draft.parents, parent), (*draft.drafters, name), (*(draft.laws or ()), law))
