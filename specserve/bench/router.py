"""`specserve bench router`: what one router can carry, on workers that sleep instead of computing.

The router, its rounds and the data plane are the real ones; Serve's leases and its proxy are left out.
"""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from specserve.bench.report import table
from specserve.bench.sleepers import SleeperPort, sleepers
from specserve.config import model_dir
from specserve.serving.router import Router
from specserve.serving.settings import DrafterPool, Settings
from specserve.types import Chunk, GenerationRequest, ModelFacts, Sampling, Speculation, SpeculationMode, TokenIds

_PROMPT: TokenIds = tuple(range(300, 364))
_IDLE_STEP_S = 20.0  # longer than it takes to measure the sessions that wait for it


def run(
    sessions: Sequence[int],
    *,
    seconds: float = 5.0,
    verifiers: int = 4,
    drafters: int = 2,
    verify_ms: float = 10.0,
    draft_ms: float = 2.0,
    openings: int = 500,
    idle: int = 2000,
    report: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Rounds per second by number of sessions, sessions opened per second, memory of an idle session.

    Args:
        seconds: each number of sessions is measured for so long, once all of them have their first token.
        verify_ms, draft_ms: what a forward pass sleeps.
        openings: requests of one token, 64 at once.
        idle: sessions open while memory is read.
    """
    replicas = {"verifier": verifiers, "drafter": drafters}
    step_s = {"verifier": verify_ms / 1e3, "drafter": draft_ms / 1e3}
    report(f"{idle} idle sessions")
    with sleepers({"verifier": 1, "drafter": 1}, {**step_s, "verifier": _IDLE_STEP_S}) as grants:
        kilobytes = asyncio.run(_memory(SleeperPort(grants), idle))  # first: what others freed would be used again
    levels = {}
    with sleepers(replicas, step_s) as grants:
        for count in sessions:
            report(f"{count} sessions")
            levels[str(count)] = asyncio.run(_rounds(SleeperPort(grants), count, seconds))
        report(f"{openings} openings")
        opened = asyncio.run(_openings(SleeperPort(grants), openings))
    return {
        "levels": levels,
        "sessions_opened_per_s": opened,
        "kilobytes_per_idle_session": kilobytes,
        "conditions": {**replicas, "verify_ms": verify_ms, "draft_ms": draft_ms, "cores": os.cpu_count()},
    }


def markdown(results: dict[str, Any]) -> str:
    """The figures as a table."""
    heads = ["sessions", "rounds/s", "tokens/s", "overhead ms p50", "router CPU µs/round"]
    rows = [
        [
            count,
            f"{level['rounds_per_s']:.0f}",
            f"{level['tokens_per_s']:.0f}",
            f"{level['overhead_ms_p50']:.2f}",
            f"{level['cpu_us_per_round']:.0f}",
        ]
        for count, level in results["levels"].items()
    ]
    return (
        f"{table(heads, rows)}\n\n"
        f"Sessions opened per second: {results['sessions_opened_per_s']:.0f}; "
        f"memory of an idle session: {results['kilobytes_per_idle_session']:.1f} KB\n"
    )


def router(port: SleeperPort, sessions: int, depth: int = 6) -> Router:
    """The real router on sleeping workers, its drafts at most so deep."""
    facts = ModelFacts("sleeper", 4096, 1 << 20, ())
    tokenizer = Tokenizer.from_file(str(model_dir("zoo:target") / "tokenizer.json"))
    pools = (DrafterPool("drafter", "drafter", max(1, depth)),)
    return Router(port, facts, tokenizer, Settings(drafters=pools, max_sessions=sessions, request_timeout_s=None))


def _request(max_tokens: int) -> GenerationRequest:
    sampling = Sampling(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    return GenerationRequest(_PROMPT, sampling, Speculation(SpeculationMode.ON))


async def _rounds(port: SleeperPort, sessions: int, seconds: float) -> dict[str, float]:
    mine = router(port, sessions)
    first = asyncio.Barrier(sessions + 1)

    async def read() -> None:
        waits = True
        async with aclosing(mine.generate(_request(1 << 19))) as events:
            async for event in events:
                if waits and isinstance(event, Chunk):
                    waits = False
                    await first.wait()

    clients = [asyncio.ensure_future(read()) for _ in range(sessions)]
    await first.wait()
    stats = mine.stats
    await asyncio.sleep(min(1.0, seconds))  # the policy has settled
    rounds, emitted, cpu_s, began = stats.rounds, stats.emitted, time.process_time(), time.perf_counter()
    await asyncio.sleep(seconds)
    took, cpu_s = time.perf_counter() - began, time.process_time() - cpu_s
    rounds, emitted = stats.rounds - rounds, stats.emitted - emitted
    overheads = sorted(r.wall_s - r.forward_s - r.draft_s for r in list(stats.latest)[-rounds:])
    for client in clients:
        client.cancel()
    await asyncio.wait(clients)
    await mine.close()
    return {
        "rounds_per_s": rounds / took,
        "tokens_per_s": emitted / took,
        "overhead_ms_p50": 1e3 * overheads[len(overheads) // 2],
        "cpu_us_per_round": 1e6 * cpu_s / rounds,
    }


async def _openings(port: SleeperPort, count: int) -> float:
    mine = router(port, 64)
    left = iter(range(count))

    async def client() -> None:
        for _ in left:
            async with aclosing(mine.generate(_request(1))) as events:
                async for _ in events:
                    pass

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(64)))
    rate = count / (time.perf_counter() - began)
    await mine.close()
    return rate


async def _memory(port: SleeperPort, count: int) -> float:
    """Kilobytes that a session holds while it waits for a verdict: what `count` more of them take, shared."""
    mine = router(port, 2 * count)
    clients: list[asyncio.Task[None]] = []

    async def read() -> None:
        async with aclosing(mine.generate(_request(64))) as events:
            async for _ in events:
                pass

    async def open_to(sessions: int) -> float:
        clients.extend(asyncio.create_task(read()) for _ in range(sessions - len(clients)))
        while mine.stats.sessions < sessions:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.5)  # all that goes out has gone out
        return _resident_kb()

    begun = await open_to(max(1, count // 10))  # code, tables and buffers that all sessions share
    held = await open_to(count + max(1, count // 10)) - begun
    for client in clients:
        client.cancel()
    await asyncio.wait(clients)
    await mine.close()
    return held / count


def _resident_kb() -> float:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1024
