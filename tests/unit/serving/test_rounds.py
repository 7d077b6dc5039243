"""What a request gets when nothing goes wrong."""

import asyncio

import pytest
from toys import EOS, babble, plain, says
from world import World, drafter, play, request, verifier

from specserve.types import FinishReason, GenerationRequest, Origin, Sampling, Speculation, SpeculationMode

PROMPT = (1, 2, 3)


@pytest.mark.parametrize("mode", SpeculationMode)
@pytest.mark.parametrize("accuracy", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("rows", [1, 3])
def test_the_text_is_what_the_target_alone_writes(mode, accuracy, rows):
    async def story(world):
        result = await world.ask(PROMPT, mode, seed=7)
        assert result.ids == plain(babble, PROMPT, Sampling(max_tokens=40, seed=7))
        assert result.reason is FinishReason.LENGTH
        assert result.usage.emitted_tokens == 40
        if mode is SpeculationMode.OFF:
            assert result.usage.rounds == 40
            assert not result.usage.drafters
        elif accuracy == 1.0:
            assert result.usage.rounds < 12

    play(lambda: World(verifier(), drafter(accuracy=accuracy, rows=rows)), story)


def test_every_emitted_token_says_where_it_came_from():
    async def story(world):
        result = await world.ask(PROMPT)
        kinds = [token.origin for token in result.tokens]
        assert kinds.count(Origin.ACCEPTED) == result.usage.accepted_tokens == result.usage.drafters["draft"].accepted
        assert len(kinds) == kinds.count(Origin.ACCEPTED) + result.usage.rounds
        assert kinds.count(Origin.RECOVERED) > 0
        assert all((token.drafter == "draft") == (token.origin is Origin.ACCEPTED) for token in result.tokens)

    play(lambda: World(verifier(), drafter(accuracy=0.6)), story)


def test_two_drafters_draft_one_tree_and_the_one_named_first_is_credited():
    async def story(world):
        wish = GenerationRequest(PROMPT, Sampling(max_tokens=40), Speculation(SpeculationMode.ON, ("b", "a")))
        result = await world.send(wish)
        assert result.ids == plain(babble, PROMPT, Sampling(max_tokens=40))
        assert result.usage.drafters["b"].accepted > result.usage.drafters["a"].accepted > 0

    play(lambda: World(verifier(), drafter("a", accuracy=0.7, salt=1), drafter("b", accuracy=0.7, salt=2)), story)


def test_the_next_draft_is_asked_for_before_the_consumer_has_taken_the_last_tokens():
    """A consumer that sleeps 1 s per chunk: the rounds do not wait for it, and chunks join beyond a bound."""

    async def story(world):
        chunks, loop = [], asyncio.get_running_loop()
        async for event in world.router.generate(request(PROMPT, SpeculationMode.OFF, max_tokens=200)):
            chunks.append(event)
            if len(chunks) == 2:
                await asyncio.sleep(30)
                began = loop.time()
        assert loop.time() == began, "everything was ready"
        assert len(chunks) < 30
        ids = [token.id for chunk in chunks[1:-1] for token in chunk.tokens]
        assert ids == plain(babble, PROMPT, Sampling(max_tokens=200))

    play(lambda: World(verifier()), story)


def test_a_round_takes_no_longer_than_drafting_verifying_and_their_trips():
    async def story(world):
        result = await world.ask(PROMPT, max_tokens=100)
        rounds = [chunk.round for chunk in result.chunks][3:]
        assert max(r.wall_s for r in rounds) == pytest.approx(0.002 + 0.010 + 4 * 0.0005, abs=1e-6)
        assert max(r.draft_s for r in rounds) == pytest.approx(0.003, abs=1e-6)

    play(lambda: World(verifier(), drafter(accuracy=0.5)), story)


def test_sessions_that_wait_for_one_replica_go_out_together():
    async def story(world):
        results = await asyncio.gather(*(world.ask((i,), seed=i) for i in range(16)))
        for i, result in enumerate(results):
            assert result.ids == plain(babble, (i,), Sampling(max_tokens=40, seed=i))
        backend = world.pool("verifier").replicas[0].backend
        assert max(backend.batches) == 16
        assert len(backend.batches) < 50

    play(lambda: World(verifier(), drafter(accuracy=0.5)), story)


def test_a_prompt_as_text_is_tokenised_and_the_text_comes_back_whole():
    async def story(world):
        result = await world.ask("What?", max_tokens=60)
        assert result.started.prompt_tokens == 5
        assert result.text == "größer als 3 €: 👩‍👩‍👧‍👦"
        assert result.reason is FinishReason.STOP
        assert result.ids[-1] == EOS
        ends = [chunk.tokens[-1].text_end for chunk in result.chunks]
        assert ends == [len(chunk.text) for chunk in result.chunks]
        assert not any("\N{REPLACEMENT CHARACTER}" in chunk.text for chunk in result.chunks)

    target = says("größer als 3 €: 👩‍👩‍👧‍👦")
    play(lambda: World(verifier(target), drafter(target=target, accuracy=0.8)), story)


def test_the_stats_add_up():
    async def story(world):
        result = await world.ask(PROMPT)
        stats, usage = world.router.stats, result.usage
        assert (stats.emitted, stats.rounds) == (usage.emitted_tokens, usage.rounds)
        assert sum(stats.drafters["draft"].accepted) == usage.accepted_tokens
        assert sum(stats.drafters["draft"].drafted) == usage.drafted_tokens
        assert len(stats.latest) == stats.rounds - 1, "the prefill is no round like the others"
        assert stats.wall_s >= stats.forward_s + stats.draft_s
        assert stats.summary()["tokens_per_round"] == usage.emitted_tokens / usage.rounds

    play(lambda: World(verifier(), drafter(accuracy=0.6)), story)
