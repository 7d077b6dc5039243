"""The failure table: what a request sees when a drafter, a verifier or a message goes wrong."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import babble, plain
from world import World, drafter, play, request, verifier

from specserve.errors import EngineError, Overloaded, SpecserveError, Unavailable
from specserve.serving.line import error_of
from specserve.types import Failed, Sampling, SpeculationMode

PROMPT = (5, 6, 7)


def expected(**sampling):
    return plain(babble, PROMPT, Sampling(**{"max_tokens": 40, **sampling}))


def test_a_late_drafter_costs_its_deadline_and_nothing_else():
    async def story(world):
        result = await world.ask(PROMPT)
        assert result.ids == expected()
        late = world.router.stats.drafters["draft"].late
        assert late >= 1
        waits = [chunk.round.draft_s for chunk in result.chunks]
        assert max(waits) == pytest.approx(0.1, abs=1e-6)

    play(lambda: World(verifier(), drafter(faults={3: "late"}), draft_deadline_s=0.1), story)


def test_a_drafter_that_was_late_drafts_again_when_it_has_caught_up():
    async def story(world):
        result = await world.ask(PROMPT, max_tokens=2000)
        assert result.ids == expected(max_tokens=2000)
        stats = world.router.stats.drafters["draft"]
        assert (stats.late, stats.died) == (1, 0)
        assert result.usage.accepted_tokens > 500

    play(lambda: World(verifier(), drafter(faults={3: "late"}), draft_deadline_s=0.1), story)


def test_a_late_proposal_is_never_verified_for_a_position_it_was_not_made_for():
    """Late by a round, again and again: what came for the last round must not be taken for this one."""

    async def story(world):
        result = await world.ask(PROMPT, max_tokens=60)
        assert result.ids == expected(max_tokens=60)
        assert result.usage.accepted_tokens == result.usage.drafted_tokens > 0
        assert world.router.stats.drafters["draft"].late > 5

    faults = dict.fromkeys(range(2, 30), "tardy")
    play(lambda: World(verifier(), drafter(faults=faults, accuracy=1.0), draft_deadline_s=0.1), story)


def test_a_drafter_that_has_become_slow_is_soon_not_waited_for():
    async def story(world):
        def slow_down():
            world.pool("draft").replicas[0].step_s = 1.0

        asyncio.get_running_loop().call_later(1.0, slow_down)
        result = await world.ask(PROMPT, SpeculationMode.AUTO, max_tokens=2500)
        assert result.ids == expected(max_tokens=2500)
        assert world.router.stats.drafters["draft"].late < 20

    play(lambda: World(verifier(), drafter(accuracy=0.9)), story)


def test_a_dead_drafter_is_left_out_at_once_and_another_lease_is_opened_beside_the_rounds():
    async def story(world):
        result = await world.ask(PROMPT, max_tokens=200)
        assert result.ids == expected(max_tokens=200)
        assert world.router.stats.drafters["draft"].died == 1
        assert len(world.pool("draft").replicas) == 2
        assert world.pool("draft").replicas[1].backend.seen > 5, "the new one drafts"
        assert max(chunk.round.draft_s for chunk in result.chunks) < 0.01, "nobody waited"

    play(lambda: World(verifier(), drafter(faults={6: "die"})), story)


def test_a_drafter_killed_from_outside_is_noticed_by_its_lease_or_its_channel():
    async def story(world):
        asyncio.get_running_loop().call_later(0.1, world.pool("draft").replicas[0].kill)
        result = await world.ask(PROMPT, max_tokens=200)
        assert result.ids == expected(max_tokens=200)
        assert world.router.stats.drafters["draft"].died == 1

    play(lambda: World(verifier(), drafter()), story)


def test_no_drafter_pool_means_plain_decoding():
    async def story(world):
        result = await world.ask(PROMPT)
        assert result.ids == expected()
        assert result.usage.drafted_tokens == 0
        assert sum(chunk.round.draft_s for chunk in result.chunks) == 0

    play(lambda: World(verifier(), drafter(replicas=0, spares=0)), story)


def test_a_pool_that_refuses_is_asked_again_with_growing_pauses():
    async def story(world):
        world.pool("draft").refuse = True
        asyncio.get_running_loop().call_later(1.0, setattr, world.pool("draft"), "refuse", False)
        result = await world.ask(PROMPT, max_tokens=300)
        assert result.ids == expected(max_tokens=300)
        assert result.usage.drafted_tokens > 0

    play(lambda: World(verifier(), drafter()), story)


def test_a_session_lost_by_the_drafter_costs_one_more_trip_in_that_round():
    async def story(world):
        result = await world.ask(PROMPT)
        assert result.ids == expected()
        waits = sorted(chunk.round.draft_s for chunk in result.chunks)
        assert waits[-1] == pytest.approx(0.004, abs=1e-6)
        assert waits[-2] == pytest.approx(0.003, abs=1e-6)
        assert world.router.stats.drafters["draft"].died == 0

    play(lambda: World(verifier(), drafter(faults={4: "lose"})), story)


def test_a_session_lost_by_the_verifier_is_sent_again_with_its_draft():
    async def story(world):
        result = await world.ask(PROMPT)
        assert result.ids == expected()
        assert world.router.stats.lost == 1
        walls = sorted(chunk.round.wall_s for chunk in result.chunks[1:])
        assert walls[-1] == pytest.approx(walls[-2] + 0.001, abs=1e-6)

    play(lambda: World(verifier(faults={4: "lose"}), drafter()), story)


@pytest.mark.parametrize("fault", ["die", "hang", "sick"])
def test_a_verifier_that_dies_mid_stream_costs_time_and_no_token(fault):
    async def story(world):
        result = await world.ask(PROMPT, max_tokens=100, seed=3)
        assert result.ids == expected(max_tokens=100, seed=3)
        assert (world.router.stats.rebuilt, world.router.stats.lost) == (1, 0)

    play(lambda: World(verifier(faults={7: fault}, replicas=2), drafter(), verify_timeout_s=2.0), story)


def test_a_verifier_that_dies_before_the_first_token_is_replaced_too():
    async def story(world):
        result = await world.ask(PROMPT)
        assert result.ids == expected()

    play(lambda: World(verifier(faults={0: "die"}), drafter()), story)


def test_without_any_verifier_left_the_request_ends_unavailable_after_what_it_had():
    async def story(world):
        tokens = []

        async def listen():
            async for event in world.router.generate(request(PROMPT, max_tokens=40)):
                tokens.extend(getattr(event, "tokens", ()))

        with pytest.raises(Unavailable):
            await listen()
        assert [token.id for token in tokens] == expected()[: len(tokens)]
        assert tokens

    play(lambda: World(verifier(faults={4: "die"}, spares=0), drafter(), lease_timeout_s=1.0, attempts=3), story)


def test_a_verifier_that_never_makes_progress_ends_the_request_unavailable():
    async def story(world):
        with pytest.raises(Unavailable):
            await world.ask(PROMPT)
        assert world.router.stats.failed == 1

    play(lambda: World(verifier(faults=dict.fromkeys(range(3, 99), "sick")), drafter()), story)


def test_no_verifier_at_all_is_unavailable_within_the_lease_timeout():
    async def story(world):
        with pytest.raises(Unavailable):
            await world.ask(PROMPT)
        assert asyncio.get_running_loop().time() < 2.1

    play(lambda: World(verifier(replicas=0, spares=0), drafter(), lease_timeout_s=2.0), story)


def test_a_verifiers_refusal_is_raised_as_the_class_it_names():
    async def story(world):
        with pytest.raises(EngineError, match="a scripted failure"):
            await world.ask(PROMPT)

    play(lambda: World(verifier(faults={2: "fail"}), drafter()), story)
    assert isinstance(error_of(Failed(1, "InvalidRequest", "bad")), SpecserveError)
    assert isinstance(error_of(Failed(1, "ZeroDivisionError", "1/0")), EngineError)


def test_a_full_verifier_refuses_a_new_request_and_never_one_under_way():
    async def story(world):
        with pytest.raises(Overloaded, match="no room"):
            await world.ask(PROMPT)
        assert (await world.ask(PROMPT)).ids == expected()
        assert world.router.stats.rebuilt == 1

    play(lambda: World(verifier(faults={0: "full", 5: "full"}), drafter()), story)


@pytest.mark.parametrize("fault", ["fail", "garbage", "astray", "sick"])
def test_a_drafter_that_answers_nonsense_only_costs_speed(fault):
    async def story(world):
        result = await world.ask(PROMPT, max_tokens=300)
        assert result.ids == expected(max_tokens=300)
        assert result.usage.accepted_tokens > 0

    play(lambda: World(verifier(), drafter(faults=dict.fromkeys(range(2, 40, 3), fault))), story)


def test_a_drafter_that_never_answers_is_given_up_for_another():
    async def story(world):
        result = await world.ask(PROMPT, max_tokens=3000)
        assert result.ids == expected(max_tokens=3000)
        stats = world.router.stats.drafters["draft"]
        assert (stats.died, stats.late) == (1, 1)

    play(lambda: World(verifier(), drafter(faults={5: "hang"})), story)


DRAFT_FAULTS = st.sampled_from(["die", "late", "tardy", "lose", "fail", "sick", "garbage", "astray", "hang"])
VERIFY_FAULTS = st.sampled_from(["die", "late", "lose", "sick", "hang"])


@settings(deadline=None, max_examples=60)
@given(
    drafts=st.dictionaries(st.integers(0, 40), DRAFT_FAULTS, max_size=8),
    verdicts=st.dictionaries(st.integers(0, 40), VERIFY_FAULTS, max_size=4),
    accuracy=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    rows=st.integers(1, 3),
    seed=st.integers(0, 3),
    mode=st.sampled_from(["on", "auto"]),
)
def test_the_text_is_the_same_under_any_schedule_of_faults(drafts, verdicts, accuracy, rows, seed, mode):
    async def story(world):
        a, b = await asyncio.gather(
            world.ask(PROMPT, SpeculationMode(mode), seed=seed), world.ask((9,), SpeculationMode(mode), seed=seed)
        )
        assert a.ids == expected(seed=seed)
        assert b.ids == plain(babble, (9,), Sampling(max_tokens=40, seed=seed))
        for result in (a, b):
            assert result.usage.emitted_tokens == 40
            assert result.usage.accepted_tokens <= result.usage.drafted_tokens

    def world():
        pools = [
            verifier(faults=dict(verdicts), replicas=2),
            drafter("a", faults=dict(drafts), accuracy=accuracy, rows=rows),
            drafter("b", faults=dict(drafts), accuracy=0.5, salt=9),
        ]
        return World(*pools, verify_timeout_s=20.0, draft_deadline_s=0.05, attempts=12)

    play(world, story)
