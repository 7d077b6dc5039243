"""What one session wants drafted, and a look at the laws after the nodes of its tree so far."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

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

    @property
    def kind(self) -> str:
        """What draft the session's rule needs: chain, drawn chain, tree, chains or siblings."""
        rule = self.spec.rule
        if rule == "trie" or (rule == "coupled" and self.branches == 1):
            return "chain"
        if rule == "coupled":
            return "tree"
        if rule in ("rejection", "block") or self.branches == 1 or self.spec.sampling.temperature == 0:
            return "drawn chain"
        return "siblings" if rule.endswith("-wor") else "chains"


Look = Callable[[Sequence[Plan], Sequence[Draft], Sequence[Sequence[int]]], Tensor]
"""A drafter's laws after some nodes of each session's tree, those of all sessions equally deep.

Arguments: plans, trees, and per session the nodes wanted; -1 is the last committed token. Returns logits
[Σ len(nodes), V], session by session.
"""


def deterministic(spec: SessionSpec) -> SessionSpec:
    """What to draft by. `trie` shares no noise with its drafters: the likeliest token is the best guess there."""
    if spec.rule != "trie":
        return spec
    return replace(spec, sampling=replace(spec.sampling, temperature=0.0))


def looks(engine: Engine, vocab: int) -> Look:
    """Of a small model of its own."""
    return partial(look, engine, vocab)


def look(
    engine: Engine, vocab: int, plans: Sequence[Plan], trees: Sequence[Draft], nodes: Sequence[Sequence[int]]
) -> Tensor:
    """The drafter's laws after some nodes of each session's tree, in one forward pass.

    Whole trees are fed anew at every level: for a small model a pass costs much more than its tokens. Afterwards the
    engine holds the committed tokens, and nothing of the trees.

    See `Look`; `vocab` columns.
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
