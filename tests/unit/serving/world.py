"""A whole router on scripted workers and a virtual clock; every run ends by asserting that nothing was left."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from scripted import Pool, ScriptedPort
from toys import FACTS, ToyDrafter, ToyVerifier, babble, byte_tokenizer
from virtual import run

from specserve.serving.router import Router
from specserve.serving.settings import DrafterPool, Settings
from specserve.types import Chunk, Finished, GenerationRequest, Sampling, Speculation, SpeculationMode, Started

TOKENIZER = byte_tokenizer()


class Result:
    """A finished stream."""

    def __init__(self, events: list) -> None:
        assert isinstance(events[0], Started)
        assert isinstance(events[-1], Finished)
        self.started, self.finished = events[0], events[-1]
        self.chunks: list[Chunk] = events[1:-1]
        assert all(isinstance(chunk, Chunk) for chunk in self.chunks)
        self.tokens = [token for chunk in self.chunks for token in chunk.tokens]
        self.ids = [token.id for token in self.tokens]
        self.text = "".join(chunk.text for chunk in self.chunks)
        self.usage, self.reason = self.finished.usage, self.finished.reason


class World:
    """Pools, a router over them, and requests to it."""

    def __init__(self, *pools: Pool, **settings: Any) -> None:
        names = [pool.name for pool in pools if pool.name != "verifier"]
        self.port = ScriptedPort(*pools)
        drafters = tuple(DrafterPool(name, name, 8) for name in names)
        settings.setdefault("clock", asyncio.get_running_loop().time)
        self.router = Router(self.port, FACTS, TOKENIZER, Settings(drafters=drafters, **settings))

    def pool(self, name: str) -> Pool:
        return self.port.pools[name]

    async def ask(self, prompt: Any = (1, 2, 3), mode: Any = SpeculationMode.ON, **sampling: Any) -> Result:
        sampling.setdefault("max_tokens", 40)
        return await self.send(request(prompt, mode, **sampling))

    async def send(self, wish: GenerationRequest) -> Result:
        return Result([event async for event in self.router.generate(wish)])


def request(prompt: Any = (1, 2, 3), mode: Any = SpeculationMode.ON, **sampling: Any) -> GenerationRequest:
    return GenerationRequest(prompt, Sampling(**sampling), Speculation(mode))


def verifier(target=babble, faults=None, **times) -> Pool:
    return Pool("verifier", lambda: ToyVerifier(target, faults), **times)


def drafter(name="draft", target=babble, faults=None, accuracy=0.7, rows=1, salt=0, **times) -> Pool:
    times = {"step_s": 0.002, **times}
    return Pool(name, lambda: ToyDrafter(target, faults, accuracy, rows, salt), **times)


def play(world: Callable[[], World], story: Callable[[World], Awaitable[Any]]) -> Any:
    """Run a story on a fresh world, then assert that it left nothing."""

    async def main() -> Any:
        scene = world()
        try:
            return await story(scene)
        finally:
            await asyncio.sleep(0)
            await scene.router.close()
            await asyncio.sleep(1)  # messages under way arrive
            scene.port.assert_nothing_left()
            assert scene.router.stats.sessions == 0
            assert scene.router.stats.waiting == 0

    return run(main())
