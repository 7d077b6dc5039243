"""Fillings through the router: streams, failures on a virtual clock, and bounds."""

import asyncio
from types import SimpleNamespace

import pytest
from scripted import Pool, ScriptedPort
from tinyxlnet import STOP, Gap, spec, tiny
from virtual import run

from specserve.errors import DeadlineExceeded, InvalidRequest, Overloaded
from specserve.infill.decode import Decoder, fill
from specserve.infill.worker import InfillBackend
from specserve.serving.infilling import InfillRouter
from specserve.serving.settings import Settings
from specserve.types import Fill, InfillChunk, InfillFinished, InfillRequest, InfillStarted, Sampling, SessionLost

MODEL = tiny(context=32)
SEGMENTS = ("ab", Gap(6), (0, 2), Gap(5, exact=False), "c")
PIECES = ((0, 1), Gap(6), (0, 2), Gap(5, exact=False), (2,))


class Letters:
    """Token ids 0, 1 and 2 are a, b and c."""

    def encode(self, text):
        return SimpleNamespace(ids=["abc".index(letter) for letter in text])

    def decode(self, ids, skip_special_tokens):
        return "".join("abc"[id] for id in ids)


class Filler(InfillBackend):
    """As the scripted port wants it."""

    on_fault = None

    def __init__(self):
        super().__init__(Decoder(MODEL, seats=4))

    @property
    def sessions(self):
        return self._sessions


def play(story, **settings):
    """A story on a router with one replica and spares; it must leave nothing behind."""

    async def main():
        port = ScriptedPort(Pool("infill", Filler))
        router = InfillRouter(port, "infill", MODEL.facts, Letters(), Settings(**settings))
        try:
            return await story(router, port)
        finally:
            await router.close()
            await asyncio.sleep(1)  # messages under way arrive
            port.assert_nothing_left()
            assert router.stats.sessions == 0

    return run(main())


def wish(drafter="self", seed=3, **changes):
    changes = {"segments": SEGMENTS, "sampling": Sampling(temperature=1.0, seed=seed), "drafter": drafter} | changes
    return InfillRequest(**changes)


async def events_of(router, request, fault=lambda: None, after=1):
    found = []
    async for event in router.infill(request):
        found.append(event)
        if isinstance(event, InfillChunk) and sum(isinstance(e, InfillChunk) for e in found) == after:
            fault()
    return found


def offline(drafter="self", seed=3):
    (task,) = fill(Decoder(MODEL, seats=1), [spec(*PIECES, drafter=drafter, seed=seed, k=5)])
    return [token for _, token in task.filling.written]


def streamed(events):
    return [token.id for event in events if isinstance(event, InfillChunk) for token in event.tokens]


@pytest.mark.parametrize("drafter", ["self", "ngram", "none"])
def test_a_stream_tells_every_token_once_and_the_answer_is_whole(drafter):
    events = play(lambda router, _: events_of(router, wish(drafter)))
    assert isinstance(events[0], InfillStarted)
    assert events[0].given_tokens == 5
    assert streamed(events) == offline(drafter)
    finished = events[-1]
    assert isinstance(finished, InfillFinished)
    assert [segment.filled for segment in finished.segments] == [False, True, False, True, False]
    assert finished.segments[0].text == "ab"
    assert finished.segments[2].token_ids == (0, 2)
    told = [segment for event in events if isinstance(event, InfillChunk) for segment in event.segments]
    assert told == [finished.segments[1], finished.segments[3]], "each gap is told once, when it is complete"
    assert STOP not in finished.segments[3].token_ids
    usage = finished.usage
    assert usage.written_tokens == len(offline(drafter)) >= usage.model_passes
    assert usage.accepted_tokens <= usage.drafted_tokens


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("drafter", ["self", "ngram", "none"])
def test_a_replica_that_dies_mid_request_changes_nothing(drafter, seed):
    async def story(router, port):
        def kill():
            for replica in port.replicas():
                replica.kill()

        events = await events_of(router, wish(drafter, seed), kill)
        assert router.stats.rebuilt == 1 or len(events) == 3
        return events

    assert streamed(play(story)) == offline(drafter, seed)


@pytest.mark.parametrize("drafter", ["self", "ngram", "none"])
def test_a_replica_that_has_forgotten_is_told_again(drafter):
    async def story(router, port):
        def forget():
            for replica in port.replicas():
                for session in list(replica.backend.sessions):
                    replica.backend._forget(session)

        events = await events_of(router, wish(drafter), forget)
        assert router.stats.lost == 1
        return events

    assert streamed(play(story)) == offline(drafter)


def test_many_requests_share_passes_and_each_has_its_own_text():
    async def story(router, port):
        answers = await asyncio.gather(*(events_of(router, wish(seed=seed)) for seed in range(4)))
        assert port.replicas()[0].backend.stats()["forwards"] < sum(e[-1].usage.model_passes for e in answers)
        return answers

    assert [streamed(events) for events in play(story)] == [offline(seed=seed) for seed in range(4)]


def test_a_full_replica_refuses():
    async def story(router, port):
        await asyncio.gather(*(events_of(router, wish(seed=seed)) for seed in range(5)))

    with pytest.raises(Overloaded, match="seats"):
        play(story)


def test_a_deadline_ends_the_request():
    with pytest.raises(DeadlineExceeded):
        play(lambda router, _: events_of(router, wish(timeout_s=0.02)))


def test_a_client_that_goes_away_leaves_nothing():
    async def story(router, port):
        stream = router.infill(wish())
        async for event in stream:
            if isinstance(event, InfillChunk):
                break
        await stream.aclose()

    play(story)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"segments": ()}, r"segments must hold 1 to 1024 segments; got 0"),
        ({"segments": ("ab",)}, r"segments must hold at least one gap"),
        ({"segments": ("ab", Gap(0))}, r"segments\[1\].gap.tokens must be 1 to 32; got 0"),
        ({"segments": ("ab", Gap(0, exact=False))}, r"segments\[1\].gap.max_tokens must be 1 to 32; got 0"),
        ({"segments": ("ab", Gap(20), "a", Gap(20))}, r"segments\[3\] must end within 32 tokens.*; got 43"),
        ({"segments": (Gap(32),)}, r"segments\[0\] must end within 31 tokens"),
        ({"segments": ("", Gap(2))}, r"segments\[0\] must hold at least one token"),
        ({"segments": ((9,), Gap(2))}, r"segments\[0\].token_ids must hold ids from 0 to 4; got 9"),
        ({"segments": ((3,), Gap(2))}, r"segments\[0\] must not hold the model's mask or stop token; got 3"),
        ({"sampling": Sampling(temperature=-1)}, r"parameters.temperature must be finite, at least 0, at most 100"),
        ({"sampling": Sampling(top_p=0)}, r"parameters.top_p must be finite, above 0, at most 1"),
        ({"drafter": "ar"}, r"drafting.drafter must be one of self, ngram, none; got 'ar'"),
        ({"draft_tokens": 1}, r"drafting.max_draft_tokens must be 2 to 64; got 1"),
        ({"timeout_s": 0.0}, r"timeout_ms must be a finite number above 0"),
    ],
)
def test_bad_input_names_the_segment_the_bound_and_the_value(changes, message):
    with pytest.raises(InvalidRequest, match=message):
        play(lambda router, _: events_of(router, wish(**changes)))


def test_a_worker_answers_lost_for_a_session_that_it_does_not_hold():
    assert Filler().submit(Fill(7, 3, (1,))) == (SessionLost(7, 0),)
