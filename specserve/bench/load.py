"""Our own server's arms: N clients that each stream one prompt after the other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from specserve.bench.sample import Arm, Sample
from specserve.transport.client import AsyncClient, request
from specserve.types import Chunk, Origin


@dataclass(frozen=True, slots=True)
class Workload:
    """What every arm is asked to do."""

    max_tokens: int = 128
    temperature: float = 0.0
    seed: int = 0
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class ServerArm:
    """One way to ask our server."""

    name: str
    mode: str  # off, on, auto
    drafters: tuple[str, ...] = ()
    max_draft_tokens: int | None = None


async def stream(client: AsyncClient, prompt: str, arm: ServerArm, load: Workload, tenant: str = "") -> Sample:
    """One generation, timed at the client."""
    made = request(
        prompt,
        mode=arm.mode,
        drafters=arm.drafters,
        max_draft_tokens=arm.max_draft_tokens,
        max_tokens=load.max_tokens,
        temperature=load.temperature,
        seed=load.seed,
        ignore_eos=load.ignore_eos,
        tenant=tenant,
    )
    ids: list[int] = []
    arrivals: list[float] = []
    rounds, accepted = [], []
    start = time.perf_counter()
    async for event in client.stream(made):
        if isinstance(event, Chunk):
            now = time.perf_counter() - start
            ids += (token.id for token in event.tokens)
            arrivals += [now] * len(event.tokens)
            if event.round is not None:
                rounds.append(event.round)
                accepted.append(sum(token.origin is Origin.ACCEPTED for token in event.tokens))
    return Sample(tuple(ids), tuple(arrivals), time.perf_counter() - start, tuple(rounds), tuple(accepted))


async def run_turn(
    address: str, arm: Arm, way: ServerArm, prompts: Sequence[str], load: Workload, clients: int
) -> None:
    """One turn of an arm: `clients` share `prompts` between them. Adds to the arm's samples, in prompt order.

    An arm has a tenant of its own: it must not copy from what another one was answered.
    """
    waiting = list(enumerate(prompts))[::-1]
    done: dict[int, Sample] = {}
    async with AsyncClient(address) as client:

        async def work() -> None:
            while waiting:
                index, prompt = waiting.pop()
                done[index] = await stream(client, prompt, way, load, f"{arm.name}, {clients} clients")

        start = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(clients)))
        arm.wall_s += time.perf_counter() - start
    arm.samples += (done[index] for index in range(len(prompts)))
