"""What one session wants drafted, and a look at the laws after the nodes of its tree so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specserve.engine.engine import Engine
from specserve.engine.layout import Row
from specserve.types import Draft, SessionSpec
from specserve.verify import Prefix


@dataclass(frozen=True, slots=True)
class Plan:
    """One session's part of a proposal.

    Args:
        tokens: committed tokens; the engine holds a beginning of them.
        depth: deepest node, at least 1.
        branches: chains to draw i.i.d., or most children of a node.
        nodes: most nodes in all, at least 1.
    """

    session: int
    spec: SessionSpec
    tokens: Sequence[int]
    depth: int
    branches: int
    nodes: int

    def prefix(self, path: tuple[int, ...]) -> Prefix:
        """What stands before the position after these drafted tokens."""
        return Prefix(self.tokens, path)


def look(
    engine: Engine, vocab: int, plans: Sequence[Plan], trees: Sequence[Draft], nodes: Sequence[Sequence[int]]
) -> Tensor:
    """The drafter's laws after some nodes of each session's tree, in one forward pass.

    Whole trees are fed anew at every level: for a small model a pass costs much more than its tokens. Afterwards the
    engine holds the committed tokens, and nothing of the trees.

    Args:
        nodes: per session, those wanted; -1 is the last committed token.
    Returns:
        [Σ len(nodes), vocab], session by session.
    """
    rows, wanted, first = [], [], 0
    for plan, tree, some in zip(plans, trees, nodes, strict=True):
        held = min(engine.held(plan.session), len(plan.tokens) - 1)
        engine.truncate(plan.session, held)
        rows.append(Row(plan.session, plan.tokens[held:], tree))
        wanted += [first + 1 + node for node in some]
        first += 1 + len(tree)
    logits = engine.forward(rows).logits
    for plan in plans:
        engine.truncate(plan.session, len(plan.tokens))
    return logits[torch.tensor(wanted, device=logits.device), :vocab]
