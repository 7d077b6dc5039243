"""The policy on simulated drafters: near the best fixed depth, and never slower than nothing.

The simulation's times are in units of one target step. Seeds are pinned; the bounds leave room for the learning.
"""

import itertools
import random

import pytest

from specserve.serving.learned import Curve, Line
from specserve.serving.policy import Policy
from specserve.types import SpeculationMode, Verdict

AUTO, ON, OFF = SpeculationMode.AUTO, SpeculationMode.ON, SpeculationMode.OFF


def verdict(positions, batch, forward_s):
    """Of a pass of so many tokens and sessions, which took so long."""
    return Verdict(1, 1, (), 1, forward_s=forward_s, batch=batch, positions=positions)


def test_the_cost_of_a_pass_is_learned_from_passes_however_many_sessions_report_them():
    one, many, rng = Policy([]), Policy([]), random.Random(0)
    for _ in range(200):
        positions = rng.randint(16, 96)
        forward_s = (0.030 + 0.0008 * positions) * rng.uniform(0.7, 1.3)
        one.verified(verdict(positions, 1, forward_s), forward_s)
        for _ in range(16):
            many.verified(verdict(positions, 16, forward_s), forward_s)
    assert many.verify.line.slope == pytest.approx(one.verify.line.slope, rel=0.05)
    assert 0.0004 < many.verify.slope(48) < 0.0012


class Sim:
    """A target that costs 1 + v per drafted token and batch mate, drafters that cost c per token and r per trip."""

    def __init__(self, v=0.01, batch=1, seed=0):
        self.v, self.batch, self.random = v, batch, random.Random(seed)
        self.drafters = {}

    def add(self, name, alpha, c, r=0.0):
        self.drafters[name] = (alpha, c, r)
        return self

    def run(self, policy, tokens=3000, mode=AUTO, names=None, limit=16):
        """Tokens per unit of time of one session."""
        names = names or list(self.drafters)
        session, time, emitted, self.asked = policy.session(mode, names), 0.0, 0, []
        while emitted < tokens:
            asks = session.plan([(name, limit) for name in names])
            spent, nodes, best, scores = 0.0, 0, 0, []
            for ask in asks:
                alpha, c, r = self.drafters[ask.drafter]
                matched = next((i for i in range(ask.depth) if self.random.random() >= alpha), ask.depth)
                seconds = r + c * ask.depth
                session.drafted(ask.drafter, ask.depth, ask.depth, seconds, False)
                scores.append((ask.drafter, matched, matched < ask.depth))
                if ask.patience > 0:
                    spent, nodes, best = max(spent, seconds), nodes + ask.depth, max(best, matched)
                self.asked.append((ask.drafter, ask.depth if ask.patience > 0 else 0))
            if not asks:
                self.asked.append(("", 0))
            forward = 1 + self.v * self.batch * nodes
            session.verified(verdict(self.batch * (1 + nodes), self.batch, forward), forward)
            for score in scores:
                session.scored(*score)
            time += spent + forward
            emitted += best + 1
        return emitted / time

    def best_fixed(self, name, limit=16):
        """The limit's closed form: E(α, γ) / (1 + vγ + cγ + r), plain decoding included."""
        alpha, c, r = self.drafters[name]
        rates = [1.0]
        for depth in range(1, limit + 1):
            expected = sum(alpha**i for i in range(depth + 1))
            rates.append(expected / (1 + self.v * self.batch * depth + c * depth + r))
        return max(rates)


@pytest.mark.parametrize("alpha", [0.3, 0.6, 0.8, 0.95])
@pytest.mark.parametrize("c", [0.01, 0.1, 0.4])
@pytest.mark.parametrize("v", [0.005, 0.05])
def test_auto_comes_near_the_best_fixed_depth_and_is_never_slower_than_nothing(alpha, c, v):
    sim = Sim(v=v).add("d", alpha, c)
    rate = sim.run(Policy(["d"], deadline_s=100))
    assert rate >= 0.93 * sim.best_fixed("d")
    assert rate >= 0.98


@pytest.mark.parametrize("alpha", [0.0, 0.1])
def test_a_useless_drafter_is_left_alone_after_a_few_rounds(alpha):
    sim = Sim().add("d", alpha, 0.3)
    assert sim.run(Policy(["d"], deadline_s=100)) >= 0.98
    assert all(depth == 0 for _, depth in sim.asked[100:])


def test_a_drafter_that_does_not_pay_is_probed_ever_more_rarely_at_no_cost_to_the_round():
    sim = Sim().add("d", 0.0, 0.3)
    sim.run(Policy(["d"], deadline_s=100))
    probes = [i for i, (name, depth) in enumerate(sim.asked) if name and depth == 0]
    gaps = [b - a for a, b in itertools.pairwise(probes)]
    assert gaps[0] >= 16
    assert max(gaps[3:]) == min(gaps[3:]) == 64


def test_a_drafter_that_becomes_good_is_used_again():
    sim, policy = Sim().add("d", 0.0, 0.1), Policy(["d"], deadline_s=100)
    session = policy.session(AUTO, ["d"])
    used = []
    for i in range(1500):
        good, nodes = i > 300, 0
        for ask in session.plan([("d", 8)]):
            session.drafted("d", ask.depth, ask.depth, 0.1 * ask.depth, False)
            session.scored("d", ask.depth if good else 0, not good)
            nodes = ask.depth if ask.patience else 0
        used.append(nodes)
        session.verified(verdict(1 + nodes, 1, 1 + 0.01 * nodes), 1 + 0.01 * nodes)
    assert not any(used[200:300])
    assert min(used[-200:]) == 8
    del sim


def test_under_load_it_drafts_less_and_at_last_nothing():
    depths = []
    for batch in (1, 8, 64):
        sim = Sim(v=0.02, batch=batch).add("d", 0.6, 0.02)
        assert sim.run(Policy(["d"], deadline_s=100)) >= 0.97
        tail = sim.asked[len(sim.asked) // 2 :]
        depths.append(sum(depth for _, depth in tail) / len(tail))
    assert depths[0] > depths[1] > depths[2]
    assert depths[2] < 0.1


def test_of_two_drafters_the_one_that_earns_more_is_used():
    sim = Sim().add("good", 0.8, 0.05).add("bad", 0.2, 0.3)
    rate = sim.run(Policy(["good", "bad"], deadline_s=100))
    assert rate >= 0.93 * sim.best_fixed("good")
    assert sum(1 for name, depth in sim.asked[100:] if name == "bad" and depth) == 0


def test_a_new_session_starts_with_what_the_router_has_learned():
    sim, policy = Sim().add("d", 0.0, 0.3), Policy(["d"], deadline_s=100)
    sim.run(policy, tokens=500)
    sim.run(policy, tokens=12)
    assert all(depth == 0 for _, depth in sim.asked)


def test_a_drafter_that_is_never_in_time_is_not_waited_for():
    policy = Policy(["d"], deadline_s=0.1)
    session, waited = policy.session(AUTO, ["d"]), 0
    for i in range(400):
        for ask in session.plan([("d", 8)]):
            if ask.patience:
                session.missed("d")
                waited += i >= 50
            session.drafted("d", ask.depth, ask.depth, 5.0, ask.patience > 0)
            session.scored("d", ask.depth, False)
        session.verified(verdict(1, 1, 0.02), 0.02)
    assert waited == 0


def test_on_asks_everyone_for_all_and_off_asks_nobody():
    policy = Policy(["a", "b"], deadline_s=0.1)
    ready = [("a", 5), ("b", 0)]
    for _ in range(50):
        (ask,) = policy.session(ON, ["a", "b"]).plan(ready)
        assert (ask.drafter, ask.depth, ask.patience) == ("a", 5, 0.1)
    assert policy.session(OFF, ["a", "b"]).plan(ready) == []


def test_a_plan_never_exceeds_the_depth_or_the_budget_of_nodes():
    policy = Policy(["a"], deadline_s=0.1, max_nodes=24)
    session = policy.session(AUTO, ["a"])
    for _ in range(50):
        for ask in session.plan([("a", 16)]):
            assert 1 <= ask.depth <= 16
            session.drafted("a", ask.depth, 4 * ask.depth, 0.0001, False)
            session.scored("a", ask.depth, False)
        session.verified(verdict(1, 1, 1.0), 1.0)
    assert ask.depth <= 6


class Trees:
    """A drafter that sizes its own trees: its i-th best node is the target's token with probability hope·keep^i."""

    def __init__(self, keep=0.8):
        self.chances = [0.9 * keep**i for i in range(64)]

    def rate(self, nodes, cost):
        return (1 + sum(self.chances[:nodes])) / cost(1 + nodes)

    def play(self, policy, cost, rounds=400):
        """The nodes of the last rounds. Expected counts stand for luck: the policy sees fractions of matches."""
        session, sizes = policy.session(AUTO, ["d"]), []
        for i in range(rounds):
            nodes = 0
            for ask in session.plan([("d", 16)]):
                nodes = sum(chance >= ask.price for chance in self.chances)
                matched = sum(self.chances[:nodes])
                whole = int(matched) + ((i * 0.618) % 1 < matched % 1)
                session.drafted("d", ask.depth, nodes, 0.0, False)
                session.scored("d", whole, True)
            session.verified(verdict(1 + nodes, 1, cost(1 + nodes)), cost(1 + nodes))
            sizes.append(nodes)
        return sizes[-50:]


@pytest.mark.parametrize("slope", [0.002, 0.01, 0.05])
@pytest.mark.parametrize("knee", [1, 24])
def test_the_price_of_a_node_keeps_trees_near_the_best_size_for_the_cost_curve(slope, knee):
    """Flat up to `knee` tokens, then rising: the chosen trees earn what the best size would."""

    def cost(tokens):
        return 1 + slope * max(0, tokens - knee)

    trees = Trees()
    policy = Policy(["d"], deadline_s=100, sizing=["d"])
    sizes = trees.play(policy, cost)
    best = max(trees.rate(nodes, cost) for nodes in range(65))
    assert min(trees.rate(nodes, cost) for nodes in sizes) >= 0.95 * best
    summary = policy.summary()
    assert 0 < summary["node_price_tokens"] <= 1
    assert any(name.startswith("verify_ms_at_") for name in summary)


def test_only_drafters_that_size_their_trees_are_told_a_price():
    policy = Policy(["a", "b"], sizing=["b"])
    for mode in (AUTO, ON):
        for ask in policy.session(mode, ["a", "b"]).plan([("a", 4), ("b", 4)]):
            assert (ask.price > 0) == (ask.drafter == "b")


def test_a_curve_finds_the_flat_part_and_the_rise_never_falls_and_goes_on_beyond():
    curve, draw = Curve(), random.Random(0)
    for _ in range(1000):
        size = draw.choice((1, 4, 16, 64, 100, 130, 200))
        curve.observe(size, (2 + max(0, size - 110) / 50) * draw.uniform(0.95, 1.05))
    assert curve.at(32) == pytest.approx(2, rel=0.06)
    assert curve.at(200) == pytest.approx(3.8, rel=0.08)
    assert curve.slope(20) < 0.003 < curve.slope(150)
    values = [curve.at(x) for x in range(1, 400)]
    assert values == sorted(values)
    assert curve.at(400) > curve.at(200)


def test_a_curve_forgets_and_a_hiccup_is_no_cost():
    curve = Curve()
    for _ in range(100):
        curve.observe(8, 5)
    for _ in range(200):
        curve.observe(8, 1)
    assert curve.at(8) == pytest.approx(1, rel=0.05)
    curve.observe(8, 1000)
    assert curve.at(8) < 1.3


def test_first_passes_that_are_slow_do_not_end_drafting():
    """Every size is slow once, as where kernels are chosen per shape."""
    met = set()

    def cost(tokens):
        slow = 1 if tokens in met else 5
        met.add(tokens)
        return slow * (1 + 0.01 * (tokens - 1))

    sizes = Trees().play(Policy(["d"], deadline_s=100, sizing=["d"]), cost)
    assert min(sizes) >= 8


def test_a_line_finds_base_and_slope_and_forgets():
    line = Line(prior_slope=0.01)
    draw = random.Random(1)
    for _ in range(300):
        x = draw.randrange(17)
        line.observe(x, 3 + 0.5 * x)
    assert line.base == pytest.approx(3, rel=0.05)
    assert line.slope == pytest.approx(0.5, rel=0.05)
    for _ in range(500):
        line.observe(8, 1)
    assert line.at(8) == pytest.approx(1, rel=0.02)
