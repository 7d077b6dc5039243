"""Drafts that are chains: one per session in the engine's dense workspace, or K drawn i.i.d. over a shared tree.

What is admitted at one depth depends on what was drawn above it alone: rules that judge with q stay exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from specserve.draft.plan import Look, Plan
from specserve.engine.engine import Engine
from specserve.types import Draft, SparseLaw
from specserve.verify import Prefix, draw_sparse, merge_chains, sample


@dataclass(slots=True)
class Run:
    """One chain: the tokens decoded so far, how many of them will be proposed, the laws they were drawn from."""

    length: int
    tokens: tuple[int, ...] = ()
    laws: list[SparseLaw] = field(default_factory=list)
    trust: float = 1.0  # product of the drafter's own probabilities

    def believe(self, p: float, floor: float) -> None:
        """The last token had probability p; below the floor nothing goes on."""
        self.trust *= p
        if self.trust < floor:
            self.length = min(self.length, len(self.tokens))

    def add(self, drawn: tuple[int, ...], law: SparseLaw, floor: float) -> None:
        """Append what was drawn; nothing, where the logits were no numbers, ends the chain."""
        if not drawn:
            self.length = len(self.tokens)
            return
        self.tokens += drawn
        self.laws.append(law)
        self.believe(law.probs[law.ids.index(drawn[0])], floor)

    def draft(self, name: str) -> Draft:
        draft = Draft.chain(self.tokens[: self.length], name)
        return replace(draft, laws=tuple(self.laws[: self.length])) if self.laws else draft


Pick = Callable[[Tensor, Sequence[Plan], Sequence[Prefix]], tuple[Tensor, Sequence[SparseLaw]]]
"""Next token of each session, int64 [B], from logits [B, V]; and the laws drawn from, where the rule needs them."""


def coupled(logits: Tensor, plans: Sequence[Plan], prefixes: Sequence[Prefix]) -> tuple[Tensor, Sequence[SparseLaw]]:
    """What the target would emit if its law were the drafter's: same noise."""
    return sample(logits, [plan.spec for plan in plans], prefixes), ()


def drawn(name: str) -> Pick:
    """Draws from the truncated law, with noise that nobody shares."""

    def pick(logits: Tensor, plans: Sequence[Plan], prefixes: Sequence[Prefix]) -> tuple[Tensor, Sequence[SparseLaw]]:
        draws = [(len(plan.tokens), len(prefix.drafted)) for plan, prefix in zip(plans, prefixes, strict=True)]
        tokens, laws = draw_sparse(logits, [plan.spec for plan in plans], prefixes, draws, drafter=name)
        return torch.tensor([token[0] if token else 0 for token in tokens], device=logits.device), laws

    return pick


def one_chain(engine: Engine, vocab: int, plans: Sequence[Plan], pick: Pick, floor: float) -> list[Run]:
    """One chain per session, in lock-step; all but the last committed token must be taken in.

    Afterwards the engine holds the committed tokens and all of a run's but the last.

    Args:
        floor: a chain ends with the token that takes the product of the drafter's own probabilities below this.
    """
    runs = [Run(plan.depth) for plan in plans]
    tokens = torch.tensor([plan.tokens[-1] for plan in plans], device=engine.device)
    depth = 0
    with engine.chain([plan.session for plan in plans], max(plan.depth for plan in plans)) as chain:
        while depth < max(run.length for run in runs):
            depth += 1
            logits = chain.step(tokens)[:, :vocab]
            prefixes = [plan.prefix(run.tokens) for plan, run in zip(plans, runs, strict=True)]
            tokens, laws = pick(logits, plans, prefixes)
            for run, token in zip(runs, tokens.tolist(), strict=True):
                run.tokens += (token,)
            for run, law in zip(runs, laws, strict=False):
                run.laws.append(law)
                if not law.ids:  # logits that are no numbers
                    run.length = min(run.length, depth - 1)
            if floor:
                own = logits.float().softmax(-1).gather(1, tokens[:, None])[:, 0].tolist()
                for run, p in zip(runs, own, strict=True):
                    run.believe(p, floor)
    return runs


def many_chains(look: Look, plans: Sequence[Plan], name: str, floor: float) -> list[Draft]:
    """K chains per session, drawn i.i.d. with replacement level by level, merged where they agree.

    A session's next level is drawn while it would fit even if no two of its tokens agreed: whether they do is not
    looked at. `floor` is as for `one_chain`.
    """
    runs = [[Run(plan.depth) for _ in range(min(plan.branches, plan.nodes))] for plan in plans]
    drafts = [Draft()] * len(plans)
    for depth in range(max(plan.depth for plan in plans)):
        live: list[int] = []
        going: list[tuple[int, int]] = []  # session and chain of each draw
        for i, plan in enumerate(plans):
            more = [(i, k) for k, run in enumerate(runs[i]) if run.length > depth]
            if more and len(drafts[i]) + len(more) <= plan.nodes:
                live.append(i)
                going += more
        if not live:
            break
        nodes = {(i, k): drafts[i].chains[k][-1] if depth else -1 for i, k in going}
        wanted = {i: sorted({nodes[pair] for pair in going if pair[0] == i}) for i in live}
        row = {pair: at for at, pair in enumerate((i, node) for i in live for node in wanted[i])}
        some = [plans[i] for i in live]
        logits = look(some, [drafts[i] for i in live], list(wanted.values()))
        tokens, laws = draw_sparse(
            logits[[row[i, nodes[i, k]] for i, k in going]],
            [plans[i].spec for i, _ in going],
            [plans[i].prefix(runs[i][k].tokens) for i, k in going],
            [(len(plans[i].tokens), depth * len(runs[i]) + k) for i, k in going],
            drafter=name,
        )
        for (i, k), new, law in zip(going, tokens, laws, strict=True):
            runs[i][k].add(new, law, floor)
        for i in live:
            drafts[i] = merge_chains([run.tokens for run in runs[i]], [run.laws for run in runs[i]], name)
    return drafts
