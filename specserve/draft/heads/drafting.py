"""From hidden states to drafts: the one code path of both placements, in the verifier's process and in a pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

import torch
from torch import Tensor

from specserve.draft.chains import many_chains
from specserve.draft.heads.law import mixture, posterior
from specserve.draft.heads.model import Heads, wide
from specserve.draft.plan import Plan, deterministic
from specserve.draft.siblings import draw_siblings
from specserve.draft.temper import Temper
from specserve.draft.tree import Tree, grow
from specserve.engine.ahead import Wish
from specserve.errors import ConfigError
from specserve.types import Draft

_AT_ONCE = 1 << 24  # numbers of factors held at a time: 64 MiB
_LEAST = 1e-38  # fp32 probabilities end here


class HeadsDrafting:
    """Drafts after a token that is emitted already: the heads' first factor is consumed by it.

    What a draft is, is for the session's rule to say, as for every drafter: the best few of log q + g for `coupled`,
    chains or siblings drawn from exactly reported laws for the rules that need q.

    Args:
        heads: trained on the target.
        unembedding: the target's, [V, d]. What is computed is computed where it is, and in its dtype.
        name: credited for every drafted token.
        max_tokens: deepest draft; at most n - 1, which None stands for.
        branches, max_nodes: where a session leaves it open: chains, or most children of a node; most nodes.
        min_confidence: a branch is not continued below this probability; in a tree, below this estimate.
    """

    def __init__(
        self,
        heads: Heads,
        unembedding: Tensor,
        *,
        name: str = "heads",
        max_tokens: int | None = None,
        branches: int = 1,
        max_nodes: int = 64,
        min_confidence: float = 0.0,
    ) -> None:
        shape = heads.shape
        if tuple(unembedding.shape) != (shape.vocab, shape.width):
            raise ConfigError(
                f"heads must be of a target with an unembedding of {[shape.vocab, shape.width]}; "
                f"got {list(unembedding.shape)}"
            )
        if not 1 <= (max_tokens or 1) < shape.tokens:
            raise ConfigError(
                f"max_tokens must be between 1 and {shape.tokens - 1}, the heads' n - 1; got {max_tokens}"
            )
        self.most = max_tokens or shape.tokens - 1
        self._name, self._branches, self._nodes, self._floor = name, branches, max_nodes, min_confidence
        self._vocab, self._rank = shape.vocab, shape.rank
        self._heads = heads.to(unembedding.device, unembedding.dtype)
        self._used = self.most + 1  # factors; a law of fewer tokens is a marginal of the whole
        self._rows = unembedding[self._heads.ids]
        self._all = shape.reduced is None
        column = torch.full((shape.vocab,), -1)
        column[heads.ids.cpu()] = torch.arange(shape.columns)
        self._column = column.tolist()
        self._temper = Temper()
        self._trees: dict[int, tuple[int, Tree]] = {}

    def draft(self, wishes: Sequence[Wish], hidden: Tensor) -> list[Draft]:
        """One draft for each session.

        Args:
            hidden: the target's last hidden state at the token before the last committed one, [N, d].
        """
        step = max(1, _AT_ONCE // (self._used * self._rank * self._rows.shape[0]))
        drafts: list[Draft] = []
        with torch.inference_mode():
            for first in range(0, len(wishes), step):
                drafts += self._some(wishes[first : first + step], hidden[first : first + step])
        return drafts

    def forget(self, session: int) -> None:
        """The session has ended."""
        self._trees.pop(session, None)

    def _some(self, wishes: Sequence[Wish], hidden: Tensor) -> list[Draft]:
        for wish in wishes:
            at, tree = self._trees.pop(wish.session, (0, None))
            if tree is not None and at < len(wish.tokens):
                tree.teach(self._temper, wish.tokens[at:])
        laws = Laws(self._heads, self._rows, self._used, self._column, None if self._all else self._vocab, hidden)
        plans = [self._plan(wish) for wish in wishes]
        laws.begin(plans)
        drafts: dict[int, Draft] = {}
        for kind, some in groupby(sorted(plans, key=_kind), _kind):
            group = list(some)
            drafts |= zip((plan.session for plan in group), self._make(kind, group, laws), strict=True)
        return [drafts[wish.session] for wish in wishes]

    def _plan(self, wish: Wish) -> Plan:
        spec = deterministic(wish.spec)
        nodes = min(spec.max_draft_nodes or self._nodes, self._nodes)
        branches = min(spec.branches or self._branches, nodes)
        return Plan(wish.session, spec, wish.tokens, min(wish.depth, self.most, nodes), branches, nodes)

    def _make(self, kind: str, plans: Sequence[Plan], laws: Laws) -> list[Draft]:
        if kind == "tree":
            trees = grow(laws.look, plans, self._temper, self._floor)
            for plan, tree in zip(plans, trees, strict=True):
                self._trees[plan.session] = len(plan.tokens), tree
            return [tree.draft(self._name) for tree in trees]
        if kind == "siblings":
            return draw_siblings(laws.look, plans, self._name)
        if kind == "chains":
            return many_chains(laws.look, plans, self._name, self._floor)
        single = many_chains(laws.look, [replace(plan, branches=1) for plan in plans], self._name, self._floor)
        return [replace(draft, chains=()) for draft in single]


def _kind(plan: Plan) -> str:
    """Where nothing is drawn, at temperature 0 and for `trie`, every rule is a walk down a tree."""
    return "tree" if plan.kind == "chain" or plan.spec.sampling.temperature == 0 else plan.kind


class Laws:
    """The factors of a batch, and the law after any path by the posterior of the terms."""

    def __init__(
        self, heads: Heads, rows: Tensor, used: int, column: Sequence[int], vocab: int | None, hidden: Tensor
    ) -> None:
        hidden = hidden.to(rows.device, rows.dtype)
        states = heads.states(hidden, used)  # [n, r, N, d]
        self._p = wide(states @ rows.T).softmax(-1)  # [n, r, N, m]
        self._log_b = heads.weights(hidden)
        self._ids, self._column, self._vocab = heads.ids, column, vocab
        self._rank = heads.shape.rank
        self._at: dict[int, int] = {}

    def begin(self, plans: Sequence[Plan]) -> None:
        """Consume the first factor by each session's last token: only a mixture can see it."""
        self._at = {plan.session: i for i, plan in enumerate(plans)}
        columns = [self._column[plan.tokens[-1]] for plan in plans]
        seen = self._p[0, :, range(len(plans)), columns].T.clamp_min(_LEAST).log()
        known = torch.tensor([column >= 0 for column in columns], device=seen.device)
        self._log_b = posterior(self._log_b, seen * known[:, None])  # what cannot be drafted says nothing

    def look(self, plans: Sequence[Plan], trees: Sequence[Draft], nodes: Sequence[Sequence[int]]) -> Tensor:
        """See `draft.plan.Look`."""
        laws = []
        for plan, tree, some in zip(plans, trees, nodes, strict=True):
            i = self._at[plan.session]
            paths = [[self._column[tree.tokens[node]] for node in tree.path(node)] for node in some]
            depth = len(paths[0])
            seen = self._p[range(1, depth + 1), :, i, paths] if depth else self._p.new_ones(len(paths), 1, self._rank)
            log_b = posterior(self._log_b[i], seen.clamp_min(_LEAST).log().sum(1))
            laws.append(mixture(log_b, self._p[1 + depth, :, i]))
        q = torch.cat(laws).log_()
        if self._vocab is None:
            return q
        return q.new_full((len(q), self._vocab), -torch.inf).index_copy_(1, self._ids, q)
