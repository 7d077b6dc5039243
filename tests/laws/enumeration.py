"""Exact laws of what a rule emits, by running the rule itself on every draft and every outcome of every coin.

Targets and drafters are tables with their own law for every prefix, so an index error shows as a wrong joint law.
Nothing is sampled: errors are rounding.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch

from specserve.types import Draft, Sampling, SessionSpec, SparseLaw
from specserve.verify import RULES, Case, merge_chains
from specserve.verify.law import Coin, Emission
from specserve.verify.tossed import Laws, Tossed

Tokens = tuple[int, ...]
Table = dict[Tokens, np.ndarray]  # the law after every prefix
Weighted = Iterable[tuple[float, Draft]]  # a drafter: every draft with its probability


def table(rng: np.random.Generator, vocab: int, length: int, zeros: float = 0.2) -> Table:
    """A random law after every prefix of at most `length` tokens, some probabilities exactly 0."""
    found = {}
    for n in range(length + 1):
        for prefix in itertools.product(range(vocab), repeat=n):
            law = rng.dirichlet(np.full(vocab, 0.7))
            hidden = rng.random(vocab) < zeros
            hidden[rng.integers(vocab)] = False
            law[hidden] = 0
            found[prefix] = law / law.sum()
    return found


def sparse(law: np.ndarray) -> SparseLaw:
    ids = np.flatnonzero(law)
    return SparseLaw(tuple(ids.tolist()), tuple(law[ids].tolist()))


def sequences(q: Table, vocab: int, length: int) -> list[tuple[float, Tokens]]:
    """Every sequence that q can draw, with its probability."""
    found = []
    for tokens in itertools.product(range(vocab), repeat=length):
        weight = float(np.prod([q[tokens[:i]][t] for i, t in enumerate(tokens)]))
        if weight > 0:
            found.append((weight, tokens))
    return found


def iid_chains(q: Table, vocab: int, length: int, k: int, told: Table | None = None) -> Weighted:
    """K i.i.d. chains. `told` is the law that the drafter says it drew from, when it lies."""
    told = told or q
    for combination in itertools.product(sequences(q, vocab, length), repeat=k):
        chains = [tokens for _, tokens in combination]
        laws = [[sparse(told[c[:i]]) for i in range(length)] for c in chains]
        yield float(np.prod([w for w, _ in combination])), merge_chains(chains, laws, "q")


def chains_of(drafters: Sequence[Table], vocab: int, length: int, distinct: bool = False) -> Weighted:
    """One chain of each of several drafters, as separate branches with their own laws."""
    for combination in itertools.product(*(sequences(q, vocab, length) for q in drafters)):
        tokens, parents, names, laws = [], [], [], []
        for number, (q, (_, chain)) in enumerate(zip(drafters, combination, strict=True)):
            parents += [-1 if i == 0 else len(tokens) + i - 1 for i in range(length)]
            tokens += chain
            names += [f"q{number}"] * length
            laws += [sparse(q[chain[:i]]) for i in range(length)]
        branches = tuple(tuple(range(i, i + length)) for i in range(0, len(tokens), length))
        draft = Draft(tuple(tokens), tuple(parents), tuple(names), tuple(laws), () if distinct else branches)
        yield float(np.prod([w for w, _ in combination])), draft


def trees_without_replacement(q: Table, branching: Sequence[int]) -> Weighted:
    """Trees whose siblings are drawn one after the other without replacement, `branching[depth]` of them."""

    def siblings(law: np.ndarray, n: int) -> Iterator[tuple[float, Tokens]]:
        if n == 0 or law.sum() <= 1e-12:
            yield 1.0, ()
            return
        for token in np.flatnonzero(law).tolist():
            left = law.copy()
            left[token] = 0
            for weight, more in siblings(left, n - 1):
                yield weight * law[token] / law.sum(), (token, *more)

    def grow(prefix: Tokens) -> Iterator[tuple[float, list]]:
        if len(prefix) == len(branching):
            yield 1.0, []
            return
        for weight, tokens in siblings(q[prefix], branching[len(prefix)]):
            below = [list(grow((*prefix, token))) for token in tokens]
            for combination in itertools.product(*below):
                total = weight * float(np.prod([w for w, _ in combination]))
                yield total, [(t, sub) for t, (_, sub) in zip(tokens, combination, strict=True)]

    for weight, tree in grow(()):
        tokens, parents, laws = [], [], []

        def lay(children: list, parent: int, prefix: Tokens, into=(tokens, parents, laws)) -> None:
            for token, below in children:
                node = len(into[0])
                into[0].append(token)
                into[1].append(parent)
                into[2].append(sparse(q[prefix]))
                lay(below, node, (*prefix, token))

        lay(tree, -1, ())
        yield weight, Draft(tuple(tokens), tuple(parents), ("q",) * len(tokens), tuple(laws))


class Choices:
    """Every way a computation can choose, one after the other, with its probability."""

    def __init__(self) -> None:
        self.weight = 1.0
        self._taken: list[list[int]] = []  # per choice: the option taken, and how many there are
        self._at = 0

    def choose(self, probabilities: Sequence[float]) -> int:
        options = [i for i, p in enumerate(probabilities) if p > 0]
        if self._at == len(self._taken):
            self._taken.append([0, len(options)])
        option = options[self._taken[self._at][0]]
        self._at += 1
        self.weight *= probabilities[option]
        return option

    def coin(self, probability: float) -> bool:
        p = min(1.0, max(0.0, float(probability)))
        return bool(self.choose((1.0 - p, p)))

    def next(self) -> bool:
        """Go to the next way; False when all were taken."""
        self.weight, self._at = 1.0, 0
        while self._taken and self._taken[-1][0] + 1 == self._taken[-1][1]:
            self._taken.pop()
        if not self._taken:
            return False
        self._taken[-1][0] += 1
        return True


def cases_of(p: Table, drafts: Sequence[Draft], rule: str) -> tuple[torch.Tensor, list[Case], list[int]]:
    """One batch of all drafts: fp64 logits, cases, first rows."""
    spec = SessionSpec(Sampling(temperature=1.0), 0, 99, rule)
    cases = [Case(spec, (), draft) for draft in drafts]
    rows, starts = [], []
    for case in cases:
        starts.append(len(rows))
        rows += [p[prefix.drafted] for prefix in case.prefixes()]
    with np.errstate(divide="ignore"):
        return torch.from_numpy(np.log(np.array(rows))), cases, starts


def emitted_law(p: Table, drafter: Weighted, rule: str) -> dict[Tokens, float]:
    """Exact law of (accepted tokens, one more token)."""
    weights, drafts = zip(*drafter, strict=True)
    logits, cases, starts = cases_of(p, drafts, rule)
    judge = RULES[rule]
    out: dict[Tokens, float] = {}
    if isinstance(judge, Tossed):
        laws = Laws(judge, logits, cases, starts)
        ways: list[tuple[float, int, Emission]] = []
        for i, tree in enumerate(laws.trees):
            ways += [(weights[i] * w, i, e) for w, e in every(lambda coin, tree=tree: judge.rule(tree, coin))]
        dense = laws.emissions([(i, e) for _, i, e in ways])
        dense /= dense.sum(-1, keepdim=True)
        for (weight, i, emission), law in zip(ways, dense.tolist(), strict=True):
            path = tuple(drafts[i].tokens[node] for node in emission.path)
            for token, prob in enumerate(law):
                if prob > 0:
                    out[*path, token] = out.get((*path, token), 0.0) + weight * prob
    else:
        for weight, case, start in zip(weights, cases, starts, strict=True):
            for tokens, w in walked(judge, logits[start : start + case.rows], case).items():
                out[tokens] = out.get(tokens, 0.0) + weight * w
    return out


def every(decide: Callable[[Coin], Emission]) -> Iterator[tuple[float, Emission]]:
    choices, more = Choices(), True
    while more:
        emission = decide(choices.coin)
        yield choices.weight, emission
        more = choices.next()


def walked(judge, logits: torch.Tensor, case: Case) -> dict[Tokens, float]:
    """Law of a walk that draws y ~ p at each row it visits."""
    out: dict[Tokens, float] = {}
    choices, more = Choices(), True

    def draw(rows, specs, histories):
        drawn = [choices.choose(law) for law in rows.softmax(-1).tolist()]
        return torch.zeros(len(drawn)), torch.tensor(drawn)

    walk = getattr(judge, "func", judge)
    while more:
        (outcome,) = walk(logits, [case], [0], draw=draw)
        tokens = (*(case.draft.tokens[node] for node in outcome.accepted), outcome.token)
        out[tokens] = out.get(tokens, 0.0) + choices.weight
        more = choices.next()
    return out


def joint_error(out: dict[Tokens, float], p: Table, vocab: int, length: int) -> float:
    """Largest difference between the target's law of `length` tokens and the emitted law, continued by the target."""
    law = dict.fromkeys(itertools.product(range(vocab), repeat=length), 0.0)
    for tokens, weight in out.items():
        for more in itertools.product(range(vocab), repeat=length - len(tokens)):
            whole = tokens + more
            law[whole] += weight * float(np.prod([p[whole[:i]][whole[i]] for i in range(len(tokens), length)]))
    return max(
        abs(weight - float(np.prod([p[tokens[:i]][t] for i, t in enumerate(tokens)]))) for tokens, weight in law.items()
    )


def mean_accepted(out: dict[Tokens, float]) -> float:
    return sum(weight * (len(tokens) - 1) for tokens, weight in out.items())


def exactness(rule: str, models: int = 2) -> float:
    """The check every rule must pass and every mutant must fail: largest error over small random models."""
    rng = np.random.default_rng(11)
    errors = []
    for _ in range(models):
        for vocab, length, drafter in DRAFTERS[rule](rng):
            p = table(rng, vocab, length)
            errors.append(joint_error(emitted_law(p, drafter, rule), p, vocab, length + 1))
    return max(errors)


Settings = Iterator[tuple[int, int, Weighted]]  # vocabulary, draft length, drafter


def one_chain(rng: np.random.Generator) -> Settings:
    for vocab, length in ((2, 3), (3, 1), (3, 3)):
        yield vocab, length, iid_chains(table(rng, vocab, length), vocab, length, 1)


def several_chains(rng: np.random.Generator) -> Settings:
    for vocab, length, k in ((3, 1, 3), (2, 2, 3), (3, 2, 2)):
        yield vocab, length, iid_chains(table(rng, vocab, length), vocab, length, k)


def several_drafters(rng: np.random.Generator) -> Settings:
    yield from several_chains(rng)
    yield 3, 2, chains_of([table(rng, 3, 2), table(rng, 3, 2)], 3, 2)


def distinct_siblings(rng: np.random.Generator) -> Settings:
    for branching in ((3,), (2, 1), (2, 2), (1, 2)):
        yield 3, len(branching), trees_without_replacement(table(rng, 3, len(branching)), branching)


DRAFTERS: dict[str, Callable[[np.random.Generator], Settings]] = {
    "rejection": one_chain,
    "block": one_chain,
    "kseq": several_chains,
    "recursive": several_drafters,
    "recursive-wor": distinct_siblings,
    "traversal": several_drafters,
    "traversal-wor": distinct_siblings,
    "coupled": several_drafters,
    "trie": several_drafters,
}
