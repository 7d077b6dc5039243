"""Rule `coupled` with branches: the tree whose nodes are most likely to be walked, under a node budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from specserve.draft.plan import Look, Plan
from specserve.draft.temper import Scores, Temper
from specserve.types import Draft
from specserve.verify.sample import scores

_COMPARED = 32  # best candidates of a position: an estimate is relative to them, and no node has more children


@dataclass(slots=True, eq=False)
class Node:
    """A drafted token; `value` estimates the probability that the walk gets here.

    `ids` and `marks`, once the law after it is known, are the best candidates and their scores in units of logits.
    """

    path: tuple[int, ...] = ()
    parent: Node | None = None
    value: float = 1.0
    ids: Sequence[int] = ()
    marks: Scores | None = None


@dataclass(slots=True)
class Tree:
    """What a session's tree has come to: the root (the last committed token) and its nodes, best first."""

    root: Node
    nodes: list[Node]

    def draft(self, name: str) -> Draft:
        """Best first, so that every beginning of it is the best tree of that size."""
        return _draft(self.nodes, name)

    def teach(self, temper: Temper, committed: Sequence[int]) -> None:
        """Learn from the tokens that were committed in its place."""
        known = {node.path: node for node in (self.root, *self.nodes) if node.marks is not None}
        for depth, token in enumerate(committed):
            node = known.get(tuple(committed[:depth]))
            if node is None or node.marks is None:
                return
            temper.observe(node.marks, node.ids.index(token) if token in node.ids else len(node.ids))


def _draft(nodes: Sequence[Node], name: str = "") -> Draft:
    """Nodes, each after its parent, as a draft."""
    index = {id(node): i for i, node in enumerate(nodes)}
    parents = tuple(index.get(id(node.parent), -1) for node in nodes)
    return Draft(tuple(node.path[-1] for node in nodes), parents, (name,) * len(nodes))


def _above(leaves: Sequence[Node]) -> list[Node]:
    """The leaves, all of one depth, after the nodes on the way to them: what must be fed to get their laws."""
    levels: list[list[Node]] = [list(leaves)]
    while (parent := levels[-1][0].parent) is not None and parent.parent is not None:
        levels.append(list({id(node.parent): node.parent for node in levels[-1] if node.parent}.values()))
    return [node for level in reversed(levels) for node in level if node.parent is not None]


def grow(look: Look, plans: Sequence[Plan], temper: Temper, floor: float) -> list[Tree]:
    """One tree per session, at most `branches` children a node, each the best of log q + g.

    Level by level: of all nodes met so far the best stay, and the law after each of the deepest is asked for. A value
    only falls along a path, so what is dropped would never have come back: this is the best-first tree, in as many
    passes as it is deep.

    Args:
        floor: nodes of less value are not continued.
    """
    trees = [Tree(Node(), []) for _ in plans]
    leaves: list[list[Node]] = [[tree.root] for tree in trees]
    for depth in range(1, 1 + max(plan.depth for plan in plans)):
        live = [i for i, plan in enumerate(plans) if leaves[i] and depth <= plan.depth]
        if not live:
            break
        fed = [_above(leaves[i]) for i in live]
        last = [range(len(some) - len(leaves[i]), len(some)) for i, some in zip(live, fed, strict=True)]
        logits = look([plans[i] for i in live], [_draft(some) for some in fed], last)
        children = _children(logits, [(plans[i], node) for i in live for node in leaves[i]], temper)
        for i in live:
            met = [*trees[i].nodes, *(child for _ in leaves[i] for child in next(children))]
            trees[i].nodes = sorted(met, key=lambda node: -node.value)[: plans[i].nodes]
            leaves[i] = [node for node in trees[i].nodes if len(node.path) == depth and node.value >= floor]
    return trees


def _children(logits: Tensor, asked: Sequence[tuple[Plan, Node]], temper: Temper) -> Iterator[list[Node]]:
    """Of each node its children, best first, from the law after it."""
    x, few = scores(logits, [plan.spec for plan, _ in asked], [plan.prefix(node.path) for plan, node in asked])
    top, at = x.topk(min(_COMPARED, x.shape[1]), -1)
    ids = (at if few is None else few.gather(1, at)).tolist()
    marks = top.double().cpu().numpy() * np.array([[plan.spec.sampling.temperature or 1.0] for plan, _ in asked])
    shares = temper.shares(marks).tolist()
    for (plan, node), its_ids, its_marks, share in zip(asked, ids, marks, shares, strict=True):
        node.ids, node.marks = its_ids, its_marks
        best = zip(its_ids[: plan.branches], share, strict=False)
        yield [Node((*node.path, token), node, node.value * s) for token, s in best if s > 0]
