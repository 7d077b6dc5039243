"""Clients that ask again and again, and what they and their rounds show in a window of time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from statistics import fmean, median

from specserve.planning.measured import Point
from specserve.planning.seen import Seen
from specserve.types import Chunk, Event, Origin, Round, Started

Ask = Callable[[], AsyncIterator[Event]]


@dataclass(frozen=True, slots=True)
class Window:
    """Clients ask again and again; what they see is measured for `seconds`, from `warm_s` on."""

    seconds: float = 10.0
    warm_s: float = 2.0
    max_tokens: int = 96


@dataclass(slots=True)
class Watched:
    """What clients saw and what their rounds say, with the CPU time of this process."""

    seen: Seen = field(default_factory=Seen)
    rounds: list[Round] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)  # of each round
    prompts: list[int] = field(default_factory=list)  # their tokens
    took_s: float = 0.0
    cpu_s: float = 0.0

    @property
    def overhead_ms(self) -> float:
        return 1e3 * median(r.wall_s - r.forward_s - r.draft_s for r in self.rounds)

    @property
    def point(self) -> Point:
        return Point(
            1e3 * median(r.forward_s for r in self.rounds),
            fmean(r.batch for r in self.rounds),
            fmean(r.nodes for r in self.rounds),
            1e3 * median(r.draft_s for r in self.rounds),
        )

    @property
    def acceptance(self) -> list[float]:
        """Share of the drafts at least i deep whose i-th token was accepted."""
        drafts = [(r.depth, accepted) for r, accepted in zip(self.rounds, self.accepted, strict=True) if r.depth]
        return [
            fmean(accepted > i for depth, accepted in drafts if depth > i)
            for i in range(max((depth for depth, _ in drafts), default=0))
        ]


async def watch(ask: Ask, clients: int, window: Window) -> Watched:
    """Ask as `clients` at once."""
    watched = Watched()

    async def client() -> None:
        while True:
            began = last = time.perf_counter()
            async for event in ask():
                if isinstance(event, Started):
                    watched.prompts.append(event.prompt_tokens)
                if isinstance(event, Chunk) and event.tokens:
                    now, tokens, seen = time.perf_counter(), len(event.tokens), watched.seen
                    seen.rounds += 1
                    seen.tokens += tokens
                    if last == began:
                        seen.first_token.add(now - began)
                    else:
                        seen.per_token.add((now - last) / tokens, tokens)
                        if event.round is not None:
                            watched.rounds.append(event.round)
                            watched.accepted.append(sum(t.origin is Origin.ACCEPTED for t in event.tokens))
                    last = now
            watched.seen.requests += 1
            watched.seen.request.add(time.perf_counter() - began)

    tasks = [asyncio.ensure_future(client()) for _ in range(clients)]
    await asyncio.sleep(window.warm_s)
    watched = Watched()
    began, cpu_s = time.perf_counter(), time.process_time()
    await asyncio.sleep(window.seconds)
    result = watched
    result.took_s, result.cpu_s = time.perf_counter() - began, time.process_time() - cpu_s
    watched = Watched()
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    return result
