"""Requests around their rounds: bounds, admission, cancellation, deadlines, shutting down."""

import asyncio
import logging
import math
from contextlib import aclosing

import pytest
from toys import FACTS, babble, plain
from world import World, drafter, play, request, verifier

from specserve.errors import DeadlineExceeded, InvalidRequest, Overloaded, Unavailable
from specserve.serving.settings import DrafterPool, Settings
from specserve.serving.validate import check_prompt, check_request, chosen_drafters
from specserve.types import Constraint, GenerationRequest, ModelFacts, Sampling, Speculation, SpeculationMode, Started

PROMPT = (5, 6, 7)
NAN = math.nan
SETTINGS = Settings(drafters=(DrafterPool("small", "small", laws=True), DrafterPool("lookup", "lookup")))

BAD = [
    ("prompt.token_ids", "at least one token", {"prompt": ()}),
    ("prompt.text", "at least one token", {"prompt": ""}),
    ("prompt.token_ids", "from 0 to 256; got 257", {"prompt": (1, 257)}),
    ("prompt.token_ids", "from 0 to 256; got -1", {"prompt": (-1,)}),
    ("prompt.text", "at most 1048576 bytes of UTF-8; got 10000000", {"prompt": "x" * 10_000_000}),
    ("prompt.text", "at most 1048576 bytes", {"prompt": "é" * 600_000}),
    ("prompt.text", "valid Unicode", {"prompt": "\ud800"}),
    ("timeout_ms", "above 0", {"timeout_s": 0}),
    ("timeout_ms", "finite", {"timeout_s": math.inf}),
    ("sampling.max_tokens", "must be 1 to 4095; got 0", {"max_tokens": 0}),
    ("sampling.max_tokens", "4096 tokens minus a prompt of 3; got 4094", {"max_tokens": 4094}),
    ("sampling.temperature", "at least 0", {"temperature": -0.1}),
    ("sampling.temperature", "finite", {"temperature": NAN}),
    ("sampling.temperature", "finite", {"temperature": math.inf}),
    ("sampling.top_p", "above 0, at most 1; got 0", {"top_p": 0}),
    ("sampling.top_p", "at most 1", {"top_p": 1.01}),
    ("sampling.min_p", "at least 0, at most 1", {"min_p": -0.5}),
    ("sampling.top_k", "at least 0", {"top_k": -1}),
    ("sampling.seed", "0 to 9223372036854775807", {"seed": 2**63}),
    ("sampling.seed", "0 to", {"seed": -1}),
    ("sampling.presence_penalty", "at least -2, at most 2", {"presence_penalty": 2.1}),
    ("sampling.frequency_penalty", "at least -2, at most 2", {"frequency_penalty": -2.1}),
    ("sampling.repetition_penalty", "above 0", {"repetition_penalty": 0}),
    ("sampling.repetition_penalty", "finite", {"repetition_penalty": math.inf}),
    ("sampling.repetition_penalty", "at most 10", {"repetition_penalty": 10.1}),
    ("sampling.logprobs", "0 to 20; got 21", {"logprobs": 21}),
    ("sampling.stop", "at most 16 strings; got 17", {"stop": ("x",) * 17}),
    ("sampling.stop", "1 to 256 characters; got ''", {"stop": ("",)}),
    ("sampling.stop", "1 to 256 characters", {"stop": ("x" * 257,)}),
    ("sampling.stop_token_ids", "from 0 to 256", {"stop_token_ids": (300,)}),
    ("sampling.stop_token_ids", "0 to 64 ids; got 65", {"stop_token_ids": (1,) * 65}),
    ("sampling.logit_bias", "from 0 to 256", {"logit_bias": {999: 1.0}}),
    ("sampling.logit_bias", "0 to 1024 ids; got 1025", {"logit_bias": dict.fromkeys(range(1025), 1.0)}),
    ("sampling.logit_bias", "at least -100, at most 100", {"logit_bias": {1: 101.0}}),
    ("sampling.logit_bias", "finite", {"logit_bias": {1: NAN}}),
    ("speculation.max_draft_tokens", "0 to 64; got 65", {"max_draft_tokens": 65}),
    ("speculation.drafters", "among small, lookup; got 'big'", {"drafters": ("big",)}),
    ("speculation.drafters", "once", {"drafters": ("small", "small")}),
    ("speculation.rule", "one of coupled, rejection, block, kseq, recursive", {"rule": "best"}),
    ("constraint", "exactly one of json_schema, regex, choice; got None", {"constraint": Constraint()}),
    ("constraint", "exactly one", {"constraint": Constraint("true", "a")}),
    ("constraint", "got 'json_schema, choice'", {"constraint": Constraint(json_schema="", choice=())}),
    ("constraint.json_schema", "must not be empty", {"constraint": Constraint(json_schema="")}),
    ("constraint.regex", "must not be empty", {"constraint": Constraint(regex="")}),
    ("constraint.regex", "at most 65536 bytes of UTF-8; got 65538", {"constraint": Constraint(regex="é" * 32_769)}),
    ("constraint.json_schema", "at most 65536 bytes", {"constraint": Constraint(json_schema="x" * 10_000_000)}),
    ("constraint.regex", "valid Unicode", {"constraint": Constraint(regex="\ud800")}),
    ("constraint.choice.choices", "1 to 1024 strings; got 0", {"constraint": Constraint(choice=())}),
    ("constraint.choice.choices", "1 to 1024 strings; got 1025", {"constraint": Constraint(choice=("a",) * 1025)}),
    ("constraint.choice.choices", "must not be empty", {"constraint": Constraint(choice=("a", ""))}),
    ("constraint.choice.choices", "at most 65536 bytes", {"constraint": Constraint(choice=("x" * 60_000,) * 2)}),
    ("sampling.ignore_eos", "false with a constraint", {"constraint": Constraint(regex="a"), "ignore_eos": True}),
]


@pytest.mark.parametrize(("field", "bound", "given"), BAD, ids=lambda value: str(value)[:40])
def test_a_bad_field_is_named_with_its_bound_and_its_value(field, bound, given):
    def part(cls):
        return cls(**{key: value for key, value in given.items() if key in cls.__dataclass_fields__})

    wish = GenerationRequest(
        given.get("prompt", PROMPT),
        part(Sampling),
        part(Speculation),
        given.get("timeout_s"),
        constraint=given.get("constraint"),
    )

    def check():
        check_request(wish, FACTS, SETTINGS)
        check_prompt((), wish, FACTS)

    with pytest.raises(InvalidRequest) as caught:
        check()
    assert caught.value.field == field
    assert bound in str(caught.value)
    assert len(str(caught.value)) < 250


def test_the_widest_request_is_good():
    check_request(
        GenerationRequest(
            "é" * 500_000,
            Sampling(4093, 100.0, 1.0, 10**9, 1.0, 2**63 - 1, ("x" * 256,) * 16, (256,), 2, -2, 9.0, {0: -100}, 20),
            Speculation(SpeculationMode.AUTO, ("small",), 64, "block", 16, 64),
            1e9,
            constraint=Constraint(choice=("x" * 64,) * 1024),
        ),
        FACTS,
        SETTINGS,
    )


def test_a_model_that_never_ends_a_sequence_takes_no_constraint():
    wish = GenerationRequest(PROMPT, constraint=Constraint(regex="a"))
    with pytest.raises(InvalidRequest, match="constraint must be unset: this model has no end-of-sequence token"):
        check_request(wish, ModelFacts("endless", 257, 4096, ()), SETTINGS)


@pytest.mark.parametrize("drafters", [("lookup",), ("small", "lookup")])
def test_a_rule_that_judges_by_laws_refuses_drafters_that_send_none_and_mixtures(drafters):
    wish = Speculation(SpeculationMode.AUTO, drafters, rule="kseq")
    with pytest.raises(InvalidRequest, match=r"one drafter among small: rule 'kseq'.*got \('"):
        check_request(GenerationRequest((1,), Sampling(temperature=1.0), wish), FACTS, SETTINGS)
    check_request(GenerationRequest((1,), Sampling(temperature=0.0), wish), FACTS, SETTINGS)  # greedy: any drafts do


def test_a_rule_that_judges_by_laws_chooses_a_drafter_that_sends_them():
    request = GenerationRequest((1,), Sampling(temperature=1.0), Speculation(rule="kseq"))
    assert [pool.name for pool in chosen_drafters(request, SETTINGS)] == ["small"]


def test_a_bad_request_starts_nothing():
    async def story(world):
        with pytest.raises(InvalidRequest):
            await world.ask(PROMPT, temperature=-1.0)
        assert world.port.log == []
        assert world.router.stats.requests == 0

    play(lambda: World(verifier(), drafter()), story)


def test_requests_beyond_the_sessions_wait_their_turn():
    async def story(world):
        results = await asyncio.gather(*(world.ask((i,)) for i in range(6)))
        for i, result in enumerate(results):
            assert result.ids == plain(babble, (i,), Sampling(max_tokens=40))
        backend = world.pool("verifier").replicas[0].backend
        assert max(backend.batches) == 2

    play(lambda: World(verifier(), drafter(), max_sessions=2), story)


def test_requests_beyond_the_queue_are_refused_with_a_retry_hint():
    async def story(world):
        results = await asyncio.gather(*(world.ask((i,)) for i in range(6)), return_exceptions=True)
        refused = [r for r in results if isinstance(r, Overloaded)]
        assert len(refused) == 3
        assert all(r.retry_after_s > 0 for r in refused)
        assert world.router.stats.waiting == 0

    play(lambda: World(verifier(), max_sessions=1, max_waiting=2), story)


def test_waiting_for_admission_is_bounded_and_leaves_the_place_to_the_next():
    async def story(world):
        async def patient():
            await asyncio.sleep(0.2)
            return await world.ask((2,))

        long, short, later = await asyncio.gather(
            world.ask((0,), max_tokens=100), world.ask((1,)), patient(), return_exceptions=True
        )
        assert len(long.ids) == 100
        assert isinstance(short, Overloaded)
        assert len(later.ids) == 40

    play(lambda: World(verifier(), max_sessions=1, admission_timeout_s=1.0), story)


def test_a_client_that_gives_up_while_it_waits_takes_no_place():
    async def story(world):
        first = asyncio.ensure_future(world.ask((0,)))
        await asyncio.sleep(0.01)
        waiting = asyncio.ensure_future(world.ask((1,)))
        await asyncio.sleep(0.01)
        waiting.cancel()
        await asyncio.wait([first, waiting])
        assert len((await world.ask((2,))).ids) == 40

    play(lambda: World(verifier(), max_sessions=1, max_waiting=1), story)


@pytest.mark.parametrize("after", [0, 1, 5, 12])
def test_a_client_that_goes_frees_its_leases_and_sessions(after):
    async def story(world):
        async with aclosing(world.router.generate(request(PROMPT, max_tokens=1000))) as events:
            async for _ in events:
                after_events.append(1)
                if len(after_events) > after:
                    break
        rounds = world.router.stats.rounds
        await asyncio.sleep(0.1)
        world.port.assert_nothing_left(channels=1)
        assert world.router.stats.rounds == rounds

    after_events = []
    play(lambda: World(verifier(), drafter()), story)


@pytest.mark.parametrize("at", [0.0, 0.001, 0.0035, 0.02, 0.3])
def test_a_cancelled_task_frees_everything_whatever_it_was_doing(at):
    async def story(world):
        task = asyncio.ensure_future(world.ask(PROMPT, max_tokens=1000))
        await asyncio.sleep(at)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.1)
        world.port.assert_nothing_left(channels=1)

    play(lambda: World(verifier(), drafter()), story)


def test_the_deadline_ends_a_request_after_the_chunks_that_came_in_time():
    async def story(world):
        events = []

        async def listen():
            wish = request(PROMPT, SpeculationMode.OFF, max_tokens=1000)
            async for event in world.router.generate(GenerationRequest(wish.prompt, wish.sampling, timeout_s=0.5)):
                events.append(event)

        with pytest.raises(DeadlineExceeded):
            await listen()
        assert asyncio.get_running_loop().time() == pytest.approx(0.5)
        assert isinstance(events[0], Started)
        assert len(events) > 20
        await asyncio.sleep(0.1)
        world.port.assert_nothing_left(channels=1)

    play(lambda: World(verifier()), story)


def test_the_deadline_counts_while_a_request_waits_for_admission_or_a_verifier():
    async def story(world):
        first = asyncio.ensure_future(world.ask((0,)))
        await asyncio.sleep(0.01)
        with pytest.raises(DeadlineExceeded):
            await world.send(GenerationRequest((1,), timeout_s=0.05))
        await first
        world.pool("verifier").replicas[0].kill()
        with pytest.raises(DeadlineExceeded):
            await world.send(GenerationRequest((1,), timeout_s=0.05))

    play(lambda: World(verifier(spares=0), max_sessions=1), story)


def test_closing_the_router_ends_what_runs_and_says_so():
    async def story(world):
        task = asyncio.ensure_future(world.ask(PROMPT, max_tokens=1000))
        await asyncio.sleep(0.1)
        await world.router.close()
        with pytest.raises(Unavailable):
            await task
        world.port.assert_nothing_left(channels=1)

    play(lambda: World(verifier(), drafter()), story)


def test_closing_the_router_refuses_what_waits_for_admission():
    async def story(world):
        tasks = [asyncio.ensure_future(world.ask((i,), max_tokens=1000)) for i in range(3)]
        await asyncio.sleep(0.1)
        await world.router.close()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, Unavailable) for result in results)

    play(lambda: World(verifier(), max_sessions=1), story)


def test_the_retry_hint_follows_the_pace_at_which_places_come_free():
    async def story(world):
        for i in range(40):
            await world.ask((i,), SpeculationMode.OFF, max_tokens=20)
        busy = [asyncio.ensure_future(world.ask((i,))) for i in range(5)]
        await asyncio.sleep(0.01)
        with pytest.raises(Overloaded) as caught:
            await world.ask((9,))
        assert caught.value.retry_after_s == pytest.approx(0.22 * 5 / 2, rel=0.2)
        await asyncio.wait(busy)

    play(lambda: World(verifier(), max_sessions=1, max_waiting=4), story)


def test_every_request_ends_with_one_log_line_that_begins_with_its_id(caplog):
    async def story(world):
        await world.send(GenerationRequest(PROMPT, Sampling(max_tokens=5), request_id="r-1"))
        with pytest.raises(DeadlineExceeded):
            await world.send(GenerationRequest(PROMPT, Sampling(max_tokens=500), timeout_s=0.1, request_id="r-2"))

    with caplog.at_level(logging.INFO, "specserve.serving.router"):
        play(lambda: World(verifier()), story)
    lines = [record.getMessage().split()[:2] for record in caplog.records]
    assert lines == [["r-1", "length"], ["r-2", "deadline"]]
    assert "emitted=5" in caplog.records[0].getMessage()


def test_a_request_may_forbid_drafting_by_its_mode_or_by_a_depth_of_0():
    async def story(world):
        for wish in (Speculation(SpeculationMode.OFF), Speculation(max_draft_tokens=0)):
            result = await world.send(GenerationRequest(PROMPT, Sampling(max_tokens=9), wish))
            assert result.usage.drafted_tokens == 0
        assert "lease draft" not in world.port.log

    play(lambda: World(verifier(), drafter()), story)
