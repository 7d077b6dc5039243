"""One channel per replica: joined messages, broken streams, and an end a while after the last lease."""

import asyncio

import pytest
from scripted import ScriptedPort
from toys import babble
from virtual import run
from world import drafter, verifier

from specserve.errors import Unavailable, WorkerDied
from specserve.serving.hub import Hub
from specserve.types import Failed, Sampling, SessionLost, SessionSpec, Verdict, Verify

SPEC = SessionSpec(Sampling(), 1, 100)


def play(story, *pools, port=ScriptedPort):
    async def main():
        scene = port(*(pools or (verifier(),)))
        hub = Hub(scene)
        await story(hub, scene)
        await hub.close()
        await asyncio.sleep(1)
        scene.assert_nothing_left()

    run(main())


def call(hold, session, base_len=0, tokens=(1,)):
    answer = asyncio.get_running_loop().create_future()
    hold.ask(Verify(session, base_len, tokens, spec=None if base_len else SPEC), answer.set_result)
    return answer


def test_calls_that_wait_together_travel_as_one_message():
    async def story(hub, port):
        holds = [await hub.open("verifier", session) for session in range(10)]
        (replica,) = port.replicas()
        assert len(replica.channels) <= 1
        replies = await asyncio.gather(*(call(hold, i) for i, hold in enumerate(holds)))
        assert all(isinstance(reply, Verdict) for reply in replies)
        assert (replica.messages, replica.backend.batches) == (1, [10])
        for hold in holds:
            hold.release()

    play(story)


def test_a_reply_is_for_the_session_that_asked():
    async def story(hub, port):
        a, b = await hub.open("verifier", 1), await hub.open("verifier", 2)
        first, lost = await asyncio.gather(call(a, 1, tokens=(5,)), call(b, 2, base_len=7))
        assert first == Verdict(1, 1, (), babble([5], SPEC), forward_s=0.01)
        assert lost == SessionLost(2, 0)
        a.release()
        b.release()

    play(story)


def test_the_channel_ends_a_while_after_the_last_lease_and_is_used_again_until_then():
    async def story(hub, port):
        (replica,) = port.replicas()
        a, b = await hub.open("verifier", 1), await hub.open("verifier", 2)
        await call(a, 1)
        a.release()
        a.release()
        await asyncio.sleep(0.1)
        assert (len(replica.channels), len(replica.leases)) == (1, 1)
        b.release()
        await asyncio.sleep(29.0)
        (channel,) = replica.channels
        assert not replica.leases
        c = await hub.open("verifier", 3)
        await asyncio.sleep(29.0)
        await call(c, 3)
        assert list(replica.channels) == [channel]
        c.release()
        await asyncio.sleep(31.0)
        assert not replica.channels

    play(story)


def test_a_broken_channel_fails_every_call_that_waits_and_every_later_one():
    async def story(hub, port):
        holds = [await hub.open("verifier", session) for session in range(3)]
        calls = [call(hold, i) for i, hold in enumerate(holds[:2])]
        await asyncio.sleep(0.003)
        for channel in list(port.replicas()[0].channels):
            channel.inbox.put_nowait(None)
        for reply in [*await asyncio.gather(*calls), await call(holds[2], 2)]:
            assert isinstance(reply, Failed)
            assert reply.kind == WorkerDied.__name__
        fresh = await hub.open("verifier", 9)
        assert isinstance(await call(fresh, 9), Verdict), "the replica lives: a new channel reaches it"
        for hold in (*holds, fresh):
            hold.release()

    play(story)


def test_a_lease_that_ends_fails_its_own_session_alone():
    async def story(hub, port):
        a, b = await hub.open("verifier", 1), await hub.open("verifier", 2)
        asked = call(a, 1), call(b, 2)
        first = next(lease for lease in port.replicas()[0].leases if lease is a._lease)
        first.gone.set()
        replies = await asyncio.gather(*asked)
        assert isinstance(replies[0], Failed)
        assert isinstance(replies[1], Verdict)
        assert isinstance(await call(a, 1), Failed)
        a.release()
        b.release()

    play(story)


def test_a_replica_that_cannot_be_reached_is_a_dead_worker():
    class Unreachable(ScriptedPort):
        async def connect(self, grant):
            raise WorkerDied("no route")

    async def story(hub, port):
        hold = await hub.open("verifier", 1)
        reply = await call(hold, 1)
        assert (reply.kind, reply.message) == ("WorkerDied", "no route")
        hold.release()

    play(story, port=Unreachable)


def test_a_lease_that_is_refused_or_cancelled_leaves_nothing():
    async def story(hub, port):
        port.pools["draft"].refuse = True
        with pytest.raises(Unavailable):
            await hub.open("draft", 1)
        opening = asyncio.ensure_future(hub.open("verifier", 1))
        await asyncio.sleep(0.001)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening

    play(story, verifier(), drafter())
