"""A backend in its thread. Real threads, no sleeping: every test waits for a reply or a condition."""

import asyncio
import threading

import pytest
from toys import ToyDrafter, ToyVerifier, babble, plain
from world import TOKENIZER, request

from specserve.errors import Overloaded, Unavailable, WorkerDied
from specserve.serving.local import LocalPort
from specserve.serving.router import Router
from specserve.serving.settings import DrafterPool, Settings
from specserve.serving.worker import WorkerLoop
from specserve.types import Close, Failed, Grant, ModelFacts, Sampling, SessionLost, SessionSpec, Verdict, Verify

FACTS = ModelFacts("toy", 257, 4096, ())
SPEC = SessionSpec(Sampling(), 1, 100)


def opening(session, tokens=(1,)):
    return Verify(session, 0, tokens, spec=SPEC)


class Inbox:
    """A destination that can be waited for."""

    def __init__(self):
        self.batches, self._news = [], asyncio.Event()

    def __call__(self, replies):
        self.batches.append(replies)
        self._news.set()

    async def wait(self, replies):
        while sum(map(len, self.batches)) < replies:
            self._news.clear()
            async with asyncio.timeout(10):
                await self._news.wait()
        return [reply for batch in self.batches for reply in batch]


class Gated(ToyVerifier):
    """Its steps wait for `gate`; `entered` says that one does."""

    def __init__(self):
        super().__init__(babble)
        self.gate, self.entered = threading.Semaphore(0), threading.Event()

    def step(self):
        self.entered.set()
        assert self.gate.acquire(timeout=10)
        return super().step()


def with_worker(backend):
    """Runs a test with a started loop over `backend`, and asserts that its thread has ended."""

    def decorate(test):
        async def wrapped():
            worker = WorkerLoop(backend(), "toy")
            worker.start()
            try:
                await test(worker, worker._backend)
            finally:
                await worker.close()
                await worker.close()
            assert not worker.healthy
            assert not worker._thread.is_alive()

        wrapped.__name__ = test.__name__
        return wrapped

    return decorate


@with_worker(lambda: ToyVerifier(babble))
async def test_every_command_gets_its_reply_on_the_event_loop(worker, backend):
    here, threads = threading.get_ident(), []
    inbox = Inbox()

    def reply_to(replies):
        threads.append(threading.get_ident())
        inbox(replies)

    worker.submit([opening(1), opening(2, (2,))], reply_to)
    replies = await inbox.wait(2)
    assert {r.session: r.token for r in replies} == {1: babble([1], SPEC), 2: babble([2], SPEC)}
    assert set(threads) == {here}
    assert worker.healthy
    assert await worker.stats() == {"sessions": 2.0}


@with_worker(Gated)
async def test_what_arrives_during_a_step_goes_into_the_next_together(worker, backend):
    inboxes = [Inbox(), Inbox()]
    worker.submit([opening(1)], inboxes[0])
    assert await asyncio.to_thread(backend.entered.wait, 10)
    for session in range(2, 8):
        worker.submit([opening(session)], inboxes[session % 2])
    backend.gate.release(2)
    await inboxes[0].wait(4)
    await inboxes[1].wait(3)
    assert backend.batches == [1, 6]
    assert [len(batch) for batch in inboxes[0].batches] == [1, 3], "one list per destination and step"
    assert [len(batch) for batch in inboxes[1].batches] == [3]


@with_worker(lambda: ToyVerifier(babble))
async def test_a_destination_that_goes_has_its_sessions_closed_and_no_others(worker, backend):
    gone, stays, heir = Inbox(), Inbox(), Inbox()
    worker.submit([opening(1), opening(2)], gone)
    worker.submit([opening(3)], stays)
    await gone.wait(2)
    await stays.wait(1)
    worker.submit([opening(2)], heir)  # taken over before the old stream was seen to end
    worker.detach(gone)
    assert (await worker.stats()) == {"sessions": 2.0}
    assert set(backend.sessions) == {2, 3}
    await heir.wait(1)


class Broken(ToyVerifier):
    def __init__(self):
        super().__init__(babble)

    def step(self):
        raise ZeroDivisionError("the model fell over")


@with_worker(Broken)
async def test_a_broken_backend_fails_everyone_who_waits_and_everyone_who_comes(worker, backend):
    first, second = Inbox(), Inbox()
    worker.submit([opening(1), opening(2)], first)
    replies = await first.wait(2)
    assert all(isinstance(r, Failed) and r.kind == "WorkerDied" and "fell over" in r.message for r in replies)
    assert not worker.healthy
    assert isinstance(worker.failure, ZeroDivisionError)
    worker.submit([opening(3), Close(3)], second)
    worker.submit([opening(4)], second)
    assert [r.session for r in await second.wait(1)] == [4], "3 was closed in the same message"
    assert await worker.stats() == {}


class Refusing(ToyVerifier):
    def __init__(self):
        super().__init__(babble)

    def submit(self, command):
        if command.session == 13:
            raise Overloaded("no room")
        return super().submit(command)


@with_worker(Refusing)
async def test_an_error_of_ours_is_one_sessions_trouble(worker, backend):
    inbox = Inbox()
    worker.submit([opening(13), opening(1)], inbox)
    replies = {r.session: r for r in await inbox.wait(2)}
    assert replies[13] == Failed(13, "Overloaded", "no room")
    assert isinstance(replies[1], Verdict)
    assert worker.healthy


class Patient(ToyVerifier):
    """Busy only at the third time it is asked: it waits for room, or for a clock of its own."""

    def __init__(self):
        super().__init__(babble)
        self.looks = 0

    @property
    def busy(self):
        self.looks += bool(self.queue)
        return bool(self.queue) and self.looks > 3


@with_worker(Patient)
async def test_a_backend_that_waits_for_room_is_asked_again(worker, backend):
    inbox = Inbox()
    worker.submit([opening(1)], inbox)
    await inbox.wait(1)


@with_worker(Patient)
async def test_forgetting_tells_who_waits_and_then_whoever_comes(worker, backend):
    inbox = Inbox()
    worker.submit([opening(1)], inbox)
    worker.forget()
    worker.submit([Verify(1, 2, ())], inbox)
    assert await inbox.wait(2) == [SessionLost(1, 0), SessionLost(1, 0)]
    assert backend.sessions == {}


@with_worker(Gated)
async def test_stopping_answers_who_still_waits(worker, backend):
    inbox = Inbox()
    worker.submit([opening(1)], inbox)
    assert await asyncio.to_thread(backend.entered.wait, 10)
    closing = asyncio.ensure_future(worker.close())
    await asyncio.sleep(0)
    worker.submit([opening(2)], inbox)
    backend.gate.release()
    await closing
    replies = {r.session: r for r in await inbox.wait(2)}
    assert isinstance(replies[1], Verdict)
    assert isinstance(replies[2], Failed)


async def test_a_router_over_local_workers_writes_what_the_target_writes():
    backends = {"verifier": ToyVerifier(babble), "small": ToyDrafter(babble, accuracy=0.7)}
    workers = {name: WorkerLoop(backend, name) for name, backend in backends.items()}
    for worker in workers.values():
        worker.start()
    port = LocalPort(workers, {"small": 4})
    router = Router(port, FACTS, TOKENIZER, Settings(drafters=(DrafterPool("small", "small"),)))

    async def ask(seed):
        tokens = []
        async for event in router.generate(request((1, 2), max_tokens=60, seed=seed)):
            tokens += getattr(event, "tokens", ())
        return [token.id for token in tokens]

    try:
        texts = await asyncio.gather(*map(ask, range(8)))
        assert texts == [plain(babble, (1, 2), Sampling(max_tokens=60, seed=seed)) for seed in range(8)]
        assert max(backends["small"].asked) == 4, "the grant bounds the depth"
        await router.close()
        assert [await worker.stats() for worker in workers.values()] == [{"sessions": 0.0}] * 2
    finally:
        for worker in workers.values():
            await worker.close()
    with pytest.raises(Unavailable):
        await port.lease("verifier")
    with pytest.raises(Unavailable):
        await port.lease("unknown")
    with pytest.raises(WorkerDied):
        await port.connect(Grant("verifier", "verifier-0", "verifier", 0))


@with_worker(Gated)
async def test_a_call_that_waits_behind_a_step_shows_as_queue_delay(worker, backend):
    inbox = Inbox()
    worker.submit([opening(1)], inbox)
    await asyncio.get_running_loop().run_in_executor(None, backend.entered.wait, 10)
    worker.submit([opening(2)], inbox)  # while the first step runs
    backend.gate.release()
    backend.gate.release()
    await inbox.wait(2)
    service = worker.service
    assert service.calls == 2
    assert 0 < service.wait_s < service.latency_s
