"""The policy on simulated drafters: near the best fixed depth, and never slower than nothing.

The simulation's times are in units of one target step. Seeds are pinned; the bounds leave room for the learning.
"""

import itertools
import random

import pytest

from specserve.serving.policy import Line, Policy
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
    assert many.verify.slope == pytest.approx(one.verify.slope, rel=0.05)
    assert 0.0004 < many.verify.slope < 0.0012


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
