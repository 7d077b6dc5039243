"""Whole generations on toy Markov models through `decide` itself, with the keyed randomness of production.

Thousands of seeds are sessions of one batch. The law of the first tokens is known exactly, so a χ² test sees what the
enumeration cannot: coins that are not independent of each other, of the drafts, or of other rounds.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats

from specserve.types import Draft, Sampling, SessionSpec, SparseLaw
from specserve.verify import Case, Prefix, decide, draw_sparse, merge_chains, process, top_coupled

VOCAB = 3
WANTED = 3  # tokens whose joint law is tested

Propose = Callable[["Drafter", Sequence[SessionSpec], Sequence[list[int]]], list[Draft]]


@dataclass(frozen=True)
class Drafter:
    """A Markov drafter: its logits after each token, how many chains or branches, and how deep."""

    logits: torch.Tensor
    k: int
    length: int
    name: str = "q"


def chains(drafter: Drafter, specs: Sequence[SessionSpec], histories: Sequence[list[int]]) -> list[Draft]:
    """K i.i.d. chains per session."""
    n, k = len(specs), drafter.k
    drafted: list[tuple[int, ...]] = [()] * (n * k)
    laws: list[list[SparseLaw]] = [[] for _ in drafted]
    for depth in range(drafter.length):
        prefixes = [Prefix(histories[i // k], drafted[i]) for i in range(n * k)]
        rows = drafter.logits[[(*histories[i // k], *drafted[i])[-1] for i in range(n * k)]]
        draws = [(len(histories[i // k]), (i % k) * drafter.length + depth) for i in range(n * k)]
        tokens, found = draw_sparse(rows, [specs[i // k] for i in range(n * k)], prefixes, draws, drafter=drafter.name)
        for i in range(n * k):
            drafted[i] += tokens[i]
            laws[i].append(found[i])
    return [merge_chains(drafted[i * k : i * k + k], laws[i * k : i * k + k], drafter.name) for i in range(n)]


def branches(drafter: Drafter, specs: Sequence[SessionSpec], histories: Sequence[list[int]]) -> list[Draft]:
    """Trees whose siblings are drawn without replacement."""
    nodes: list[list[tuple[int, int, SparseLaw]]] = [[] for _ in specs]  # per session: token, parent, law
    level = [(i, -1, ()) for i in range(len(specs))]
    for depth in range(drafter.length):
        rows = drafter.logits[[(*histories[i], *path)[-1] for i, _, path in level]]
        prefixes = [Prefix(histories[i], path) for i, _, path in level]
        draws = [(len(histories[i]), depth * 100 + node + 1) for i, node, _ in level]
        drawn, laws = draw_sparse(
            rows, [specs[i] for i, _, _ in level], prefixes, draws, drafter=drafter.name, count=drafter.k
        )
        below = []
        for (i, node, path), siblings, law in zip(level, drawn, laws, strict=True):
            for token in siblings:
                below.append((i, len(nodes[i]), (*path, token)))
                nodes[i].append((token, node, law))
        level = below
    drafts = []
    for mine in nodes:
        tokens, parents, laws_ = zip(*mine, strict=True)
        drafts.append(Draft(tokens, parents, (drafter.name,) * len(mine), laws_))
    return drafts


def coupled_trees(drafter: Drafter, specs: Sequence[SessionSpec], histories: Sequence[list[int]]) -> list[Draft]:
    """The top k of log q + g at the first position, a chain of the best below each."""
    prefixes = [Prefix(h) for h in histories]
    heads = top_coupled(drafter.logits[[h[-1] for h in histories]], specs, prefixes, drafter.k).tolist()
    found = []
    for spec, history, firsts in zip(specs, histories, heads, strict=True):
        paths = [(first,) for first in dict.fromkeys(firsts)]
        for _ in range(drafter.length - 1):
            rows = drafter.logits[[path[-1] for path in paths]]
            best = top_coupled(rows, [spec] * len(paths), [Prefix(history, path) for path in paths], 1)[:, 0].tolist()
            paths = [(*path, token) for path, token in zip(paths, best, strict=True)]
        laws = [[SparseLaw((t,), (1.0,)) for t in path] for path in paths]
        found.append(merge_chains(paths, laws, drafter.name))
    return found


def point_masses(drafter: Drafter, specs: Sequence[SessionSpec], histories: Sequence[list[int]]) -> list[Draft]:
    """A deterministic drafter, as an n-gram one: k fixed continuations with one-hot laws."""
    found = []
    for history in histories:
        paths = [tuple((sum(history) + i * (j + 1)) % VOCAB for i in range(drafter.length)) for j in range(drafter.k)]
        found.append(merge_chains(paths, [[SparseLaw((t,), (1.0,)) for t in path] for path in paths], drafter.name))
    return found


def two_drafters(drafter: Drafter, specs: Sequence[SessionSpec], histories: Sequence[list[int]]) -> list[Draft]:
    """A chain of one drafter beside a chain of another with another law."""
    other = Drafter(drafter.logits.flip(0), 1, drafter.length, "r")
    pairs = zip(chains(drafter, specs, histories), chains(other, specs, histories), strict=True)
    return [
        Draft(
            a.tokens + b.tokens,
            a.parents + tuple(p + len(a) if p >= 0 else -1 for p in b.parents),
            a.drafters + b.drafters,
            (a.laws or ()) + (b.laws or ()),
            a.chains + tuple(tuple(node + len(a) for node in chain) for chain in b.chains),
        )
        for a, b in pairs
    ]


def generate(
    target: torch.Tensor, drafter: Drafter, propose: Propose, rule: str, sampling: dict, seeds: Sequence[int]
) -> tuple[list[list[int]], float]:
    """The first tokens of every seed, and the mean number accepted per round."""
    specs = [SessionSpec(Sampling(seed=s, **sampling), 1, 99, rule) for s in seeds]
    texts = [[0] for _ in seeds]
    rounds = accepted = 0
    while going := [i for i, text in enumerate(texts) if len(text) <= WANTED]:
        drafts = propose(drafter, [specs[i] for i in going], [texts[i] for i in going])
        cases = [Case(specs[i], texts[i], draft) for i, draft in zip(going, drafts, strict=True)]
        last = [(*text.committed, *text.drafted)[-1] for case in cases for text in case.prefixes()]
        for i, case, outcome in zip(going, cases, decide(target[last], cases), strict=True):
            texts[i] += [case.draft.tokens[node] for node in outcome.accepted] + [outcome.token]
            accepted += len(outcome.accepted)
        rounds += len(going)
    return [text[1 : 1 + WANTED] for text in texts], accepted / rounds


def target_law(target: torch.Tensor, sampling: dict) -> np.ndarray:
    """Exact probability of every sequence of the first tokens, in the order of itertools.product."""
    spec = SessionSpec(Sampling(**sampling), 1, 99)
    law = []
    for tokens in itertools.product(range(VOCAB), repeat=WANTED):
        histories = [[0, *tokens[:i]] for i in range(WANTED)]
        p = process(target.double()[[h[-1] for h in histories]], [spec] * WANTED, histories).softmax(-1)
        law.append(float(np.prod([float(p[i, t]) for i, t in enumerate(tokens)])))
    return np.array(law)


def p_value(propose: Propose, rule: str, k: int, length: int, sampling: dict, n: int = 1200, seed: int = 0) -> float:
    """χ² of the joint law of the first three tokens over n seeds; impossible sequences give 0."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(VOCAB, VOCAB, generator=generator)
    drafter = Drafter(target + torch.randn(VOCAB, VOCAB, generator=generator) * 1.5, k, length)
    texts, _ = generate(target, drafter, propose, rule, sampling, range(seed * n, seed * n + n))
    seen = np.bincount([int(np.ravel_multi_index(t, (VOCAB,) * WANTED)) for t in texts], minlength=VOCAB**WANTED)
    want = target_law(target, sampling) * n
    if seen[want == 0].any():
        return 0.0
    common = want >= 5
    observed, expected = seen[common], want[common]
    if want[~common].sum() > 0:
        observed, expected = np.append(observed, seen[~common].sum()), np.append(expected, want[~common].sum())
    assert len(observed) > 5, "too few sequences to test anything"
    return float(stats.chisquare(observed, expected).pvalue)
