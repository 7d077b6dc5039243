"""The rules that toss coins: from logits to trees of laws, and from a rule's decision to a token, batched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from specserve.errors import VerifyError
from specserve.types import Draft, SparseLaw
from specserve.verify.case import Case, Outcome
from specserve.verify.coupled import coupled
from specserve.verify.law import Child, Coin, Emission, Fork, TossedRule, Tree, Weights
from specserve.verify.noise import Purpose, arrivals, key, uniform
from specserve.verify.transform import process

_CACHED = 1 << 19  # logits turned into laws at a time on a CPU: what its caches hold
_HELD = 1 << 27  # and on an accelerator: what its memory can spare


@dataclass(frozen=True, slots=True)
class Tossed:
    """A rule that accepts by coins and needs the laws the draft was drawn from; callable as a `Rule`.

    At temperature 0 every one of them is the greedy walk, and no law is needed.

    Attributes:
        one_chain: takes a single branch only.
        one_law: siblings must have been drawn i.i.d. from one law by one drafter.
        distinct: siblings must have been drawn without replacement.
    """

    name: str
    rule: TossedRule
    one_chain: bool = False
    one_law: bool = False
    distinct: bool = False

    def __call__(self, logits: Tensor, cases: Sequence[Case], starts: Sequence[int]) -> list[Outcome]:
        outcomes: dict[int, Outcome] = {}
        cold = [i for i, case in enumerate(cases) if case.spec.sampling.temperature == 0]
        hot = [i for i, case in enumerate(cases) if case.spec.sampling.temperature > 0]
        for mine, judge in ((cold, coupled), (hot, self._toss)):
            if mine:
                found = judge(logits, [cases[i] for i in mine], [starts[i] for i in mine])
                outcomes.update(zip(mine, found, strict=True))
        return [outcomes[i] for i in range(len(cases))]

    def _toss(self, logits: Tensor, cases: Sequence[Case], starts: Sequence[int]) -> list[Outcome]:
        laws = Laws(self, logits, cases, starts)
        decided = [(i, self.rule(laws.trees[i], coins(case))) for i, case in enumerate(cases) if laws.faults[i] is None]
        outcomes = [Outcome((), -1)] * len(cases)
        if decided:
            weights = laws.emissions(decided)
            keys = [key(cases[i].spec.sampling.seed, Purpose.RESIDUAL, len(cases[i].tokens)) for i, _ in decided]
            for (i, emission), token in zip(decided, race(weights, keys), strict=True):
                outcomes[i] = Outcome(emission.path, token)
        return [
            outcome if fault is None else Outcome((), -1, fault=fault)
            for outcome, fault in zip(outcomes, laws.faults, strict=True)
        ]

    def check(self, draft: Draft) -> None:
        """Refuse a draft this rule would not be exact for.

        Raises:
            VerifyError: laws are missing or do not hold the drafted tokens, or the draft has the wrong shape.
        """
        if not draft.tokens:
            return
        if draft.laws is None or len(draft.laws) != len(draft.tokens):
            raise VerifyError(
                f"rule '{self.name}' needs the law of every drafted token and drafter '{_who(draft)}' sent none; "
                "use a drafter that reports its laws, or rule 'coupled' or 'trie'"
            )
        for token, law in zip(draft.tokens, draft.laws, strict=True):
            if token not in law.ids or law.probs[law.ids.index(token)] <= 0:
                raise VerifyError(f"drafted token {token} has probability 0 in the law it is said to be drawn from")
        if self.one_law and len(set(draft.drafters)) > 1:
            raise VerifyError(
                f"rule '{self.name}' needs i.i.d. drafts from one law and got drafters {sorted(set(draft.drafters))}; "
                "use one drafter, or rule 'recursive' or 'coupled'"
            )
        _check_chains(draft)
        for siblings in drawn(draft).values():
            self._check_siblings(draft, draft.laws, siblings)

    def _check_siblings(self, draft: Draft, laws: Sequence[SparseLaw], siblings: Sequence[int]) -> None:
        if self.one_chain and len(siblings) > 1:
            raise VerifyError(f"rule '{self.name}' takes one chain and got {len(siblings)} drafts of one position")
        if self.one_law and any(laws[i] != laws[siblings[0]] for i in siblings[1:]):
            raise VerifyError(f"rule '{self.name}' needs i.i.d. drafts and siblings were drawn from different laws")
        if self.distinct:
            pairs = [(draft.tokens[i], draft.drafters[i]) for i in siblings]
            if draft.chains or len(set(pairs)) < len(pairs):
                raise VerifyError(f"rule '{self.name}' takes siblings drawn without replacement and got equal ones")
        elif len(siblings) > 1 and not draft.chains:
            raise VerifyError(
                f"rule '{self.name}' needs `Draft.chains`: how often each token was drawn, and in what order"
            )


def _check_chains(draft: Draft) -> None:
    """Whether the chains are paths from the root that cover the tree. A tree cut afterwards fails here."""
    seen: set[int] = set()
    for chain in draft.chains:
        for parent, node in zip((-1, *chain), chain, strict=False):
            if not 0 <= node < len(draft.tokens) or draft.parents[node] != parent:
                raise VerifyError(f"chain {chain} does not follow the draft's tree of {len(draft.tokens)} nodes")
        seen.update(chain)
    if draft.chains and len(seen) < len(draft.tokens):
        raise VerifyError(f"chains cover {len(seen)} of the draft's {len(draft.tokens)} nodes")


def _who(draft: Draft) -> str:
    return draft.drafters[0] if draft.drafters else ""


def drawn(draft: Draft) -> dict[int, list[int]]:
    """Children of each node in the order they were drawn, as often as they were drawn."""
    children: dict[int, list[int]] = {}
    if draft.chains:
        for chain in draft.chains:
            for parent, node in zip((-1, *chain), chain, strict=False):
                children.setdefault(parent, []).append(node)
    else:
        for node, parent in enumerate(draft.parents):
            children.setdefault(parent, []).append(node)
    return children


def coins(case: Case) -> Coin:
    """Independent coins keyed (seed, committed length, how many were tossed): no two rounds share one."""
    tossed = 0

    def coin(probability: float) -> bool:
        nonlocal tossed
        tossed += 1
        return uniform(case.spec.sampling.seed, Purpose.ACCEPT, len(case.tokens), tossed) < probability

    return coin


def race(weights: Tensor, keys: Sequence[int]) -> list[int]:
    """One id per row of unnormalised weights [N, V]: the first to arrive when E / weight are the times."""
    return weights.div(arrivals(keys, weights.shape[1], weights.device)).argmax(-1).tolist()


class Laws:
    """The target's laws of a batch: on few ids for the rules, whole for what is emitted."""

    def __init__(self, rule: Tossed, logits: Tensor, cases: Sequence[Case], starts: Sequence[int]) -> None:
        for case in cases:
            rule.check(case.draft)
        self._logits, self._cases, self._starts = logits, cases, starts
        self.faults: list[str | None] = [None] * len(cases)
        self.trees: list[Tree] = []
        forks: list[Fork] = []
        rows: list[tuple[int, int]] = []
        for i, case in enumerate(cases):
            tree = Tree({})
            self.trees.append(tree)
            for node, children in drawn(case.draft).items():
                fork = tree.forks[node] = plant(case.draft, children)
                forks.append(fork)
                rows.append((i, node))
        self._fill(forks, rows)

    def _fill(self, forks: Sequence[Fork], rows: Sequence[tuple[int, int]]) -> None:
        """Gather the target's probabilities, some rows at a time: whole laws of every node are never held."""
        step = max(1, (_CACHED if self._logits.device.type == "cpu" else _HELD) // self._logits.shape[1])
        for first in range(0, len(forks), step):
            some = forks[first : first + step]
            p = self._p(rows[first : first + step])
            sizes = [len(fork.ids) for fork in some]
            at = torch.from_numpy(np.repeat(np.arange(len(some)), sizes)).to(p.device)
            ids = torch.from_numpy(np.concatenate([fork.ids for fork in some])).to(p.device)
            flat = p[at, ids].double().cpu().numpy()
            for fork, on_ids in zip(some, np.split(flat, np.cumsum(sizes)[:-1]), strict=True):
                fork.p = on_ids
                fork.outside = max(0.0, 1.0 - float(on_ids.sum()))

    def _p(self, rows: Sequence[tuple[int, int]]) -> Tensor:
        """The target's law after the given (case, node) pairs, [N, V]. Rows that are not numbers mark their case."""
        at = [self._starts[i] + 1 + node for i, node in rows]
        x = self._logits.index_select(0, torch.tensor(at, device=self._logits.device))
        specs = [self._cases[i].spec for i, _ in rows]
        histories = [self._cases[i].prefix(node) for i, node in rows]
        p = process(x, specs, histories).softmax(-1)
        for (i, node), bad in zip(rows, p[:, 0].isnan().tolist(), strict=True):  # one bad logit: NaN all over the row
            if bad and self.faults[i] is None:
                self.faults[i] = f"logits at position {len(self._cases[i].prefix(node))} are not finite"
        return p

    def emissions(self, decided: Sequence[tuple[int, Emission]]) -> Tensor:
        """The whole law of what each (case, decision) emits, unnormalised, [N, V]."""
        weights = self._p([(i, e.path[-1] if e.path else -1) for i, e in decided])
        changed = [(row, e.law) for row, (_, e) in enumerate(decided) if e.law is not None]
        if changed:
            weights *= _column([1.0 if e.law is None else e.law.rest for _, e in decided], weights)
            at = torch.from_numpy(np.repeat([r for r, _ in changed], [len(law.weights) for _, law in changed]))
            ids = torch.from_numpy(np.concatenate([law.fork.ids for _, law in changed]))
            new = torch.from_numpy(np.concatenate([law.weights for _, law in changed])).to(weights)
            weights[at.to(weights.device), ids.to(weights.device)] = new
        return weights


def plant(draft: Draft, children: Sequence[int]) -> Fork:
    """A fork with the draft's side filled in: the ids its children could have been, and the law of each child."""
    assert draft.laws is not None
    laws = [draft.laws[i] for i in children]
    ids = laws[0].ids
    if any(law is not laws[0] and law != laws[0] for law in laws):
        ids = tuple(sorted({token for law in laws for token in law.ids}))
    fork = Fork(np.array(ids, dtype=np.int64), np.empty(0), 0.0)
    sources: list[tuple[str, SparseLaw, Weights]] = []
    for node, law in zip(children, laws, strict=True):
        drafter = draft.drafters[node]
        number = next((n for n, (who, its, _) in enumerate(sources) if who == drafter and its == law), len(sources))
        if number == len(sources):
            q = np.array(law.probs)
            if law.ids is not ids and law.ids != ids:
                q = np.zeros(len(ids))
                q[[ids.index(token) for token in law.ids]] = law.probs
            sources.append((drafter, law, q / q.sum()))
        fork.children.append(Child(node, ids.index(draft.tokens[node]), sources[number][2], number))
    return fork


def _column(values: list[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]
