"""Rounds without a router: what they count is what the rules did."""

import pytest

from specserve.bench.rules import FIXED, SHAPES
from specserve.bench.rules_play import Cost, Job, Pair, Played, Way
from specserve.engine import Engine, Row
from specserve.types import Sampling, SessionSpec
from specserve.verify import sample

PROMPTS = ((5, 6, 7), tuple(range(40)))
MAX_TOKENS = 20


@pytest.fixture(scope="module")
def pair(folders) -> Pair:
    return Pair(folders.target, folders.drafter, sessions=4)


def play(pair: Pair, way: Way, cost: Cost | None = None) -> list[Played]:
    jobs = [Job(i, tokens, Sampling(temperature=1.0, seed=i)) for i, tokens in enumerate(PROMPTS)]
    return pair.play(way, jobs, MAX_TOKENS, cost or Cost())


def plain(folders, tokens, seed: int, count: int) -> list[int]:
    """What the target alone writes, token by token."""
    engine, text = Engine(folders.target, slots=512, max_nodes=1, trace=False), list(tokens)
    spec = SessionSpec(Sampling(temperature=1.0, seed=seed), len(tokens), 200)
    engine.open(0, 200)
    for _ in range(count):
        logits = engine.forward([Row(0, text[engine.held(0) :])]).logits
        text.append(int(sample(logits, [spec], [text])))
    return text


@pytest.mark.parametrize("way", [*FIXED, SHAPES[0], SHAPES[-1]], ids=lambda way: way.name)
def test_every_way_plays_to_the_end_and_leaves_nothing(pair, way):
    cost = Cost()
    for prompt, one in enumerate(play(pair, way, cost)):
        assert one.job.prompt == prompt
        written = len(one.tokens) - len(PROMPTS[prompt])
        assert one.emitted == written - 1, "the round of the prompt emits one token and is not counted"
        assert written >= MAX_TOKENS or one.tokens[-1] == 2
        assert one.rounds <= one.emitted <= one.rounds * (way.depth + 1)
        assert one.nodes <= one.rounds * way.nodes
        assert one.started <= one.rounds
        assert len(one.openings) == (one.rounds if way.rule != "coupled" else 0)
    assert cost.bytes > 0
    assert cost.verify_s > cost.forward_s > 0
    assert pair.engine.sessions == set()


@pytest.mark.parametrize("way", [FIXED[1], SHAPES[-1]], ids=lambda way: way.name)
def test_coupled_writes_what_the_target_alone_writes(folders, pair, way):
    for seed, one in enumerate(play(pair, way)):
        assert one.tokens == plain(folders, one.job.tokens, seed, len(one.tokens) - len(one.job.tokens))


def test_one_chain_of_two_rules_is_drafted_alike(pair):
    """Same seeds, same first drafts: the ratio of two rules compares the rules."""
    by_rule = {way.rule: play(pair, way) for way in FIXED if way.branches == 1}
    for one, other in zip(by_rule["rejection"], by_rule["block"], strict=True):
        assert one.openings[0] == other.openings[0]
