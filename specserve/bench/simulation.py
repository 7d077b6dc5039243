"""`specserve bench simulation`: what `planning.simulation` says against the real system, same config and same load.

Two realities. `sleeping`: the router of `specserve bench router` on workers that sleep, which is all of the control
plane but Serve's leases. `served`: a config deployed on Serve, engine and all. What calls, messages and passes cost is
measured apart from what is compared: with other loads, or with the fewest and the most clients for those in between.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from specserve.bench.report import table
from specserve.bench.router import router
from specserve.bench.sleepers import SleeperPort, sleepers
from specserve.bench.watch import Watched, Window, watch
from specserve.planning.figures import Figures, parse
from specserve.planning.measured import fit_draft, fit_pass
from specserve.planning.seen import Seen
from specserve.planning.simulation import Simulation
from specserve.types import (
    Event,
    GenerationRequest,
    Sampling,
    Speculation,
    SpeculationMode,
)

COMPARED = ("tokens_per_s", "request_s_p95", "ms_per_token_p95")
_PROMPT = 16  # tokens, at sleepers
_ACCEPTANCE = (1.0, 1.0, 1.0, 0.0)  # of sleepers: every fourth token is wrong, and drafts start behind it

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Case:
    """Sleeping replicas and their load; milliseconds are what a step sleeps. `depth` 0 is plain decoding."""

    sessions: int
    verifiers: int = 1
    drafters: int = 1
    verify_ms: float = 20.0
    draft_ms: float = 4.0
    depth: int = 6

    def __str__(self) -> str:
        drafts = f"{self.drafters} × {self.draft_ms:g} ms, {self.depth} deep" if self.depth else "none"
        return f"{self.sessions} sessions, {self.verifiers} × {self.verify_ms:g} ms, drafters: {drafts}"


CASES = (
    Case(1),
    Case(4),
    Case(16),
    Case(16, depth=0),
    Case(16, verifiers=2, drafters=2),
    Case(24, verifiers=2, draft_ms=15.0),
    Case(32, verifiers=4, drafters=2, verify_ms=40.0, draft_ms=10.0),
    Case(48, verifiers=3, verify_ms=60.0, draft_ms=20.0),
)


def sleeping(window: Window, cases: Sequence[Case] = CASES, report: Report = lambda _: None) -> dict[str, Any]:
    """Every case on sleeping workers, and simulated."""
    report("calibration")
    alone = _sleep(Case(1, verify_ms=10.0, draft_ms=2.0), window)
    many = _sleep(Case(16, 2, 2, 10.0, 2.0), window)
    message_ms = 1e3 * many.cpu_s / many.seen.rounds / 2  # a round with drafts is two replies
    call_ms = max(0.0, alone.overhead_ms - message_ms)
    open_ms = max(0.0, 1e3 * alone.seen.first_token.quantile(0.5) - 10.0 - call_ms)
    calls = {"message_ms": message_ms, "call_ms": call_ms, "open_ms": open_ms}
    compared = []
    for case in cases:
        report(str(case))
        real = _sleep(case, window)
        replicas = {"router": 1, "verifier": case.verifiers, "drafter": case.drafters}
        compared.append(_compare(str(case), real, _sleepers(case, calls, window), replicas, case.sessions, window))
    return {"cases": compared, "worst": _worst(compared), "conditions": {**calls, "cores": os.cpu_count()}}


def _sleep(case: Case, window: Window) -> Watched:
    replicas = {"verifier": case.verifiers, "drafter": case.drafters}
    step_s = {"verifier": case.verify_ms / 1e3, "drafter": case.draft_ms / 1e3}
    mode = SpeculationMode.ON if case.depth else SpeculationMode.OFF
    sampling = Sampling(temperature=0.0, max_tokens=window.max_tokens, ignore_eos=True)
    request = GenerationRequest(tuple(range(300, 300 + _PROMPT)), sampling, Speculation(mode))

    async def load() -> Watched:
        mine = router(SleeperPort(grants), case.sessions, case.depth)
        try:
            return await watch(lambda: mine.generate(request), case.sessions, window)
        finally:
            await mine.close()

    with sleepers(replicas, step_s) as grants:
        return asyncio.run(load())


def _sleepers(case: Case, calls: Mapping[str, float], window: Window) -> Figures:
    drafter = {"call_ms": case.draft_ms, "step_ms": 0.0, "acceptance": _ACCEPTANCE, "depth": max(1, case.depth)}
    target = {"step_ms": case.verify_ms, "token_ms": 0.0}
    return _figures(target, drafter if case.depth else None, calls, _PROMPT, window)


def served(
    config: dict[str, Any],
    prompts: Sequence[str],
    window: Window,
    *,
    drafter: str,
    depth: int = 4,
    clients: Sequence[int] = (1, 4, 8),
    report: Report = lambda _: None,
) -> dict[str, Any]:
    """A deployed config by number of clients, with and without its drafter, and simulated. Passes are fitted to the
    fewest and the most clients; what lies between is predicted."""
    from deployments import launch

    real: dict[tuple[str, int], Watched] = {}
    with launch.up(config, report) as server:
        for count in clients:
            for way in ("off", drafter):
                report(f"{way}, {count} clients")
                real[way, count] = asyncio.run(_ask_server(server.grpc, prompts, way, depth, count, window))
    ends = (min(clients), max(clients))
    off = real["off", ends[0]]
    call_ms = off.overhead_ms
    target = fit_pass([real[way, count].point for way in ("off", drafter) for count in ends])
    drafts = fit_draft([real[drafter, count].point for count in ends], call_ms)
    prompt = round(fmean(off.prompts))
    first_ms = target["step_ms"] + (prompt - 1) * target["token_ms"] + call_ms
    calls = {"call_ms": call_ms, "open_ms": max(0.0, 1e3 * off.seen.first_token.quantile(0.5) - first_ms)}
    compared = []
    for (way, count), watched in real.items():
        mine = None if way == "off" else {**drafts, "acceptance": watched.acceptance, "depth": depth}
        figures = _figures(target, mine, calls, prompt, window)
        replicas = {"router": 1, "verifier": 1, "drafter": 1}
        compared.append(_compare(f"{way}, {count} clients", watched, figures, replicas, count, window))
    return {"cases": compared, "worst": _worst(compared), "conditions": {"target": target, "drafter": drafts, **calls}}


async def _ask_server(
    address: str, prompts: Sequence[str], way: str, depth: int, clients: int, window: Window
) -> Watched:
    from specserve.transport.client import AsyncClient, request

    asked = 0
    async with AsyncClient(address) as client:

        def ask() -> AsyncIterator[Event]:
            nonlocal asked
            asked += 1
            options: dict[str, Any] = (
                {"mode": "off"} if way == "off" else {"mode": "on", "drafters": (way,), "max_draft_tokens": depth}
            )
            prompt = prompts[asked % len(prompts)]
            return client.stream(request(prompt, max_tokens=window.max_tokens, ignore_eos=True, **options))

        return await watch(ask, clients, window)


def _figures(
    target: Mapping[str, float],
    drafter: Mapping[str, Any] | None,
    calls: Mapping[str, float],
    prompt: int,
    window: Window,
) -> Figures:
    many = {"max_sessions": 1024}
    return parse(
        {
            "target": {**target, **many},
            "drafters": {"drafter": {**drafter, **many}} if drafter is not None else {},
            "router": {**calls, **many},
            "traffic": {
                "phases": [{"seconds": 1, "clients": 1}],
                "prompt_tokens": prompt,
                "output_tokens": window.max_tokens,
                "spread": 0.0,
            },
        }
    )


def _compare(
    name: str, watched: Watched, figures: Figures, replicas: Mapping[str, int], clients: int, window: Window
) -> dict[str, Any]:
    simulation = Simulation(figures, next(iter(figures.drafters), None), replicas)
    simulation.clients(clients)
    simulation.run(lambda: simulation.env.now >= window.warm_s)
    simulation.total = Seen()
    seconds = simulation.run(lambda: simulation.env.now >= window.warm_s + window.seconds)
    simulated = simulation.total.figures(seconds)
    real = watched.seen.figures(watched.took_s)
    ratios = {key: simulated[key] / real[key] for key in COMPARED}
    return {"case": name, "real": real, "simulated": simulated, "simulated_over_real": ratios}


def _worst(compared: Sequence[Mapping[str, Any]]) -> float:
    return max(abs(float(ratio) - 1) for case in compared for ratio in case["simulated_over_real"].values())


def markdown(results: Mapping[str, Any]) -> str:
    """A row for each case: real, and simulated / real."""
    heads = ["case", *(title for key in COMPARED for title in (key, "simulated / real"))]
    rows = [
        [case["case"]]
        + [cell for key in COMPARED for cell in (f"{case['real'][key]:.3g}", f"{case['simulated_over_real'][key]:.2f}")]
        for case in results["cases"]
    ]
    return f"{table(heads, rows)}\n\nFarthest from 1: {results['worst']:.0%}\n"
