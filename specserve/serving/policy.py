"""Which drafters to ask, and how deep: what earns the most expected tokens per second, nothing included.

A round that drafts k deep emits E(k) = 1 + Σ S(i) tokens, S(i) being the chance that depth i is reached and kept,
and takes T(k) = verify(positions) + draft(k) seconds. All three are learned online. Pure: seconds are passed in.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from specserve.serving.learned import Curve, Line, Mean
from specserve.types import SpeculationMode, Verdict

_HOPE = 0.7  # acceptance of a drafter nobody has tried
_CHEAPEST = 0.002  # tokens that a node must bring wherever it is free: it also has to travel
_GAIN = 1.02  # speculation must promise this much before it is used
_PROBE_FIRST, _PROBE_LAST = 16, 64  # rounds between probes of a drafter that does not pay


@dataclass(frozen=True, slots=True)
class Ask:
    """One drafter's part in a round. `patience` is how long to wait for it, in seconds; 0 is a probe: whatever
    comes is compared with the text later and costs the round nothing. A drafter that sizes its own trees is told the
    `price` of a node, in tokens: drafting a node that is expected to bring less would make the text slower."""

    drafter: str
    depth: int
    patience: float
    price: float = 0.0


class Acceptance:
    """P(depth i kept | depth i-1 kept), decayed counts over a prior: another Acceptance, or the depth before."""

    def __init__(self, prior: Acceptance | None, weight: float, keep: float) -> None:
        self._prior, self._weight, self._keep = prior, weight, keep
        self._hits: list[float] = []
        self._trials: list[float] = []

    def observe(self, matched: int, diverged: bool) -> None:
        """A draft was followed `matched` deep; `diverged` says that it went on, wrongly."""
        trials = matched + diverged
        while len(self._hits) < trials:
            self._hits.append(0.0)
            self._trials.append(0.0)
        keep = self._keep
        for i in range(len(self._hits)):  # also what was not tried fades, and so is tried again one day
            self._hits[i] = self._hits[i] * keep + (i < matched)
            self._trials[i] = self._trials[i] * keep + (i < trials)

    def rates(self, depth: int) -> list[float]:
        prior = self._prior.rates(depth) if self._prior is not None else None
        rates, last, w = [], _HOPE, self._weight
        for i in range(depth):
            expected = prior[i] if prior is not None else last
            last = (self._hits[i] + w * expected) / (self._trials[i] + w) if i < len(self._hits) else expected
            rates.append(last)
        return rates


class _Drafter:
    """What a router knows of one drafter pool. `sizes`: it sizes its own trees by the price of a node."""

    def __init__(self, sizes: bool) -> None:
        self.sizes = sizes
        self.nodes = Mean(0.0)  # of a draft
        self.acceptance = Acceptance(None, weight=8.0, keep=0.998)
        # Against depth. Hope that a shallow draft is cheap: it is tried then, and shows what it costs.
        self.seconds = Line(keep=0.95)


class Policy:
    """What one router has learned, shared by its sessions.

    Args:
        drafters: their names.
        deadline_s: longest wait for drafts in a round.
        max_nodes: most drafted nodes of one session in a round.
        sizing: names of those that size their own trees by the price of a node.
    """

    def __init__(
        self,
        drafters: Iterable[str],
        deadline_s: float = 0.1,
        max_nodes: int = 64,
        sizing: Collection[str] = (),
    ) -> None:
        self.deadline_s, self.max_nodes = deadline_s, max_nodes
        self.drafters = {name: _Drafter(name in sizing) for name in drafters}
        self.verify = Curve()  # forward seconds against positions
        self.price = Mean(0.0)  # the latest prices
        self.batch = Mean(1.0)
        self.stretch = Mean(1.0)  # seconds of a call to the verifier over seconds of its forward pass

    def session(self, mode: SpeculationMode, drafters: Sequence[str]) -> SessionPolicy:
        return SessionPolicy(self, mode, drafters)

    def verify_s(self, nodes: float) -> float:
        """Expected seconds of a call with `nodes` drafted nodes: in a batch the others' grow alike."""
        if not self.verify.known:
            return 1.0 + 0.01 * nodes
        return max(self.stretch.value * self.verify.at(self.batch.value * (1.0 + nodes)), 1e-9)

    def price_of(self, rate: float, nodes: float) -> float:
        """Tokens that one node more must bring where `nodes` are drafted and text comes at `rate` tokens per second.

        At the best ratio E/T of expected tokens to seconds, a node pays exactly if its tokens exceed E/T times its own
        seconds (Dinkelbach 1967). On the flat part of the curve nodes are nearly free.
        """
        if not self.verify.known:
            return rate * 0.01
        share = self.batch.value
        node_s = self.stretch.value * share * self.verify.slope(share * (1.0 + nodes))
        return min(max(rate * node_s, _CHEAPEST), 1.0)

    def summary(self) -> dict[str, float]:
        """What was measured and is decided by, flat; units in the names."""
        summary = {f"verify_ms_at_{round(x)}_tokens": 1e3 * y for x, y in self.verify.points}
        if self.price.weight:
            summary["node_price_tokens"] = self.price.value
        for name, drafter in self.drafters.items():
            if drafter.nodes.weight:
                summary[f"{name}_nodes_per_draft"] = drafter.nodes.value
                summary[f"{name}_draft_ms_at_depth_8"] = 1e3 * drafter.seconds.at(8)
                for depth, rate in enumerate(drafter.acceptance.rates(4), 1):
                    summary[f"{name}_acceptance_at_{depth}"] = rate
        return summary

    def verified(self, verdict: Verdict, wall_s: float) -> None:
        """A round (no prefill) was verified, by a call of `wall_s`."""
        # Every session of a pass reports it: together they count once, else 16 sessions would remember three passes.
        self.verify.observe(verdict.positions, verdict.forward_s, 1 / verdict.batch)
        self.batch.observe(verdict.batch)
        if verdict.forward_s > 0:
            self.stretch.observe(max(1.0, min(wall_s / verdict.forward_s, 4.0)))


class _Line:
    """One session's experience with one drafter."""

    def __init__(self, pool: _Drafter) -> None:
        self.pool = pool
        self.acceptance = Acceptance(pool.acceptance, weight=6.0, keep=0.97)
        self.fruitful = Mean(1.0, weight=2.0)  # how often a draft came, in time and not empty
        self.width = Mean(1.0, weight=2.0)  # nodes per depth asked for
        self.idle = 0  # rounds since it was asked
        self.probe = _PROBE_FIRST


class SessionPolicy:
    """Decides one session's rounds and learns from them."""

    def __init__(self, policy: Policy, mode: SpeculationMode, drafters: Sequence[str]) -> None:
        self._policy, self._mode = policy, mode
        self._lines = {name: _Line(policy.drafters[name]) for name in drafters}

    def plan(self, ready: Sequence[tuple[str, int]]) -> list[Ask]:
        """What to ask of the drafters that are ready, each with the deepest draft it may make now."""
        if self._mode is SpeculationMode.OFF:
            return []
        deadline = self._policy.deadline_s
        if self._mode is SpeculationMode.ON:
            return [Ask(name, depth, deadline, self._price(name, depth)) for name, depth in ready if depth > 0]
        asks: list[Ask] = []
        kept: list[float] = []  # S(i) of all that were chosen, together
        nodes, slowest = 0.0, 0.0
        best = _GAIN / self._policy.verify_s(0)
        options = [(*self._best(name, depth), name) for name, depth in ready if depth > 0]
        for _, depth, name in sorted(options, key=lambda option: -option[0]):
            line = self._lines[name]
            if depth:
                more = self._survival(line, depth)
                joint = [max(a, b) + min(a, b) * (1 - max(a, b)) / 2 for a, b in zip(kept, more, strict=False)]
                joint += kept[len(more) :] or more[len(kept) :]
                wide = nodes + line.width.value * depth * line.fruitful.value
                slow = max(slowest, line.pool.seconds.at(depth))
                value = (1 + sum(joint)) / (self._policy.verify_s(wide) + slow)
                if value > best:
                    best, kept, nodes, slowest = value, joint, wide, slow
                    asks.append(Ask(name, depth, self._patience(line, depth)))
                    line.idle, line.probe = 0, _PROBE_FIRST
                    continue
            line.idle += 1
            if line.idle >= line.probe:
                line.idle, line.probe = 0, min(2 * line.probe, _PROBE_LAST)
                asks.append(Ask(name, max(1, min(4, dict(ready)[name])), 0.0))
        price = self._policy.price_of(best, nodes)
        self._policy.price.observe(price)
        return [replace(ask, price=price) if self._lines[ask.drafter].pool.sizes else ask for ask in asks]

    def drafted(self, drafter: str, depth: int, nodes: int, seconds: float, late: bool) -> None:
        """A proposal came `seconds` after it was asked for `depth`; when `late`, it was `missed` before."""
        line = self._lines[drafter]
        line.pool.seconds.observe(depth, seconds)
        if not late:
            line.fruitful.observe(1.0 if nodes else 0.0)
        if nodes:
            line.width.observe(nodes / depth)
            line.pool.nodes.observe(nodes)

    def missed(self, drafter: str) -> None:
        """A round went on without the proposal it had waited for."""
        self._lines[drafter].fruitful.observe(0.0)

    def scored(self, drafter: str, matched: int, diverged: bool) -> None:
        """The text has shown how far a proposal was right."""
        line = self._lines[drafter]
        diverged = diverged or line.pool.sizes  # its trees end where they stop paying: that is no missing evidence
        line.acceptance.observe(matched, diverged)
        line.pool.acceptance.observe(matched, diverged)

    def verified(self, verdict: Verdict, wall_s: float) -> None:
        """See Policy.verified."""
        self._policy.verified(verdict, wall_s)

    def _survival(self, line: _Line, depth: int) -> list[float]:
        alive, survival = line.fruitful.value, []
        for rate in line.acceptance.rates(depth):
            alive *= rate
            survival.append(alive)
        return survival

    def _best(self, name: str, limit: int) -> tuple[float, int]:
        """(tokens per second, depth) of this drafter alone at its best depth; depth 0 when none pays."""
        line, policy = self._lines[name], self._policy
        best, best_depth = _GAIN / policy.verify_s(0), 0
        if line.pool.sizes:
            value = self._rate(name, limit)
            return (value, limit) if value > best else (best, 0)
        expected, width = 1.0, line.width.value * line.fruitful.value
        limit = min(limit, max(1, int(policy.max_nodes / max(line.width.value, 1.0))))
        for depth, alive in enumerate(self._survival(line, limit), 1):
            expected += alive
            value = expected / (policy.verify_s(width * depth) + line.pool.seconds.at(depth))
            if value > best:
                best, best_depth = value, depth
        return best, best_depth

    def _rate(self, name: str, depth: int) -> float:
        """Tokens per second with this drafter alone."""
        line, policy = self._lines[name], self._policy
        nodes = line.width.value * line.fruitful.value * depth
        return (1.0 + sum(self._survival(line, depth))) / (policy.verify_s(nodes) + line.pool.seconds.at(depth))

    def _price(self, name: str, depth: int) -> float:
        """Of a node, where this drafter is asked whatever it costs."""
        line = self._lines[name]
        if not line.pool.sizes:
            return 0.0
        return self._policy.price_of(self._rate(name, depth), line.width.value * line.fruitful.value * depth)

    def _patience(self, line: _Line, depth: int) -> float:
        deadline = self._policy.deadline_s
        if not line.pool.seconds.known:
            return deadline
        return min(deadline, 0.005 + 3 * line.pool.seconds.at(depth))
