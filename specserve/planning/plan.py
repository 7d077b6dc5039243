"""How many replicas of each kind, what they give, and what that costs, with and without speculation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from specserve.planning.cell import VERIFIERS, Cell, simulate
from specserve.planning.figures import Figures
from specserve.planning.simulation import Simulation

PLAIN = "plain decoding"
_DRAFTERS = (1, 2, 4, 8)  # beside the verifiers of a cell
_HALVINGS = 5  # of the search for the acceptance that breaks even
_SLACK = 1.1  # replicas a trace may grow to, of those its peak needs: they come late, and have a queue to work off

Report = Callable[[str], None]


def plan(figures: Figures, *, trace: bool = True, seed: int = 0, report: Report = lambda _: None) -> dict[str, Any]:
    """Everything, as JSON-able values. All of it is simulated.

    Args:
        trace: whether to run the figures' traffic through the plan too, autoscaler and all.
    """
    ways = {PLAIN: _grid(figures, None, seed, report)}
    ways |= {name: _grid(figures, name, seed, report) for name in figures.drafters}
    chosen = {name: _choose(cells, figures) for name, cells in ways.items()}
    best = min(chosen, key=lambda name: _rank(chosen[name], figures))
    result: dict[str, Any] = {
        "simulated": True,
        "best": best,
        "ways": {name: _way(cell, figures) for name, cell in chosen.items()},
        "break_even": {
            name: _break_even(figures, chosen[name], ways[name], ways[PLAIN], seed, report) for name in figures.drafters
        },
        "curves": {name: _curve(cells) for name, cells in ways.items()},
        "figures": figures.model_dump(mode="json", exclude_defaults=True),
    }
    if trace:
        kept = dict.fromkeys((best, PLAIN))
        result["traces"] = {
            name: _trace(figures, chosen[name], result["ways"][name]["replicas"], seed, report) for name in kept
        }
    return result


def _grid(figures: Figures, drafter: str | None, seed: int, report: Report) -> list[Cell]:
    """Cells over sessions per verifier and, with a drafter, over drafters per verifier."""
    most = figures.target.max_sessions
    loads = sorted({*(n for n in (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256) if n < most), most})
    cells = []
    for sessions in loads:
        report(f"{drafter or PLAIN}: {sessions} sessions per verifier")
        counts: Sequence[int] = (0,)
        if drafter is not None:
            room = figures.drafters[drafter].max_sessions
            counts = [count for count in _DRAFTERS if count * room >= sessions * VERIFIERS] or [
                math.ceil(sessions * VERIFIERS / room)
            ]
        cells += [simulate(figures, drafter, count, sessions, seed) for count in counts]
    return cells


def _choose(cells: Sequence[Cell], figures: Figures) -> Cell:
    """The cheapest that meets the goals; where none does, the one with the shortest time per token."""
    return min(cells, key=lambda cell: _rank(cell, figures))


def _rank(cell: Cell, figures: Figures) -> tuple[bool, float, float]:
    meets = cell.meets(figures)
    return not meets, cell.price_per_million if meets else cell.figures["ms_per_token_p95"], -_worth(cell)


def _way(cell: Cell, figures: Figures) -> dict[str, Any]:
    """The cell, as often as the traffic's peak needs it."""
    sessions = max(
        phase.clients if phase.clients is not None else (phase.requests_per_s or 0.0) * cell.request_s
        for phase in figures.traffic.phases
    )
    verifiers = max(1, math.ceil(sessions / cell.sessions))
    drafters = math.ceil(verifiers * cell.drafters / VERIFIERS)
    routers = max(1, math.ceil(sessions / figures.router.replicas.target_sessions))
    return {
        "replicas": {"router": routers, "verifier": verifiers, "drafter": drafters},
        "sessions": sessions,
        "sessions_per_verifier": cell.sessions,
        "meets_goals": cell.meets(figures),
        "gpus": verifiers * cell.gpus / VERIFIERS,
        "tokens_per_s": sessions / (cell.sessions * VERIFIERS) * cell.figures["tokens_per_s"],
        "tokens_per_s_per_gpu": cell.tokens_per_s_per_gpu,
        "price_per_million_tokens": cell.price_per_million,
        **{name: value for name, value in cell.figures.items() if name.startswith(("ttft", "ms_per", "request_s_"))},
        "tokens_per_round": cell.figures["tokens_per_round"],
    }


def _curve(cells: Sequence[Cell]) -> list[dict[str, float]]:
    """For each load the cell with most tokens per second and GPU."""
    return [
        {
            "sessions": float(cell.sessions),
            "drafters_per_verifier": cell.drafters / VERIFIERS,
            "tokens_per_s_per_gpu": cell.tokens_per_s_per_gpu,
            "ms_per_token_p50": cell.figures["ms_per_token_p50"],
            "ms_per_token_p95": cell.figures["ms_per_token_p95"],
            "price_per_million_tokens": cell.price_per_million,
        }
        for cell in _best_per_load(cells)
    ]


def _best_per_load(cells: Sequence[Cell]) -> list[Cell]:
    loads = sorted({cell.sessions for cell in cells})
    return [max((cell for cell in cells if cell.sessions == load), key=_worth) for load in loads]


def _worth(cell: Cell) -> float:
    """Tokens per second and GPU; where there are none, per verifier."""
    return cell.figures["tokens_per_s"] / (cell.gpus or VERIFIERS)


def _break_even(
    figures: Figures, mine: Cell, cells: Sequence[Cell], plain_cells: Sequence[Cell], seed: int, report: Report
) -> dict[str, float | None]:
    """Where the drafter stops paying against plain decoding at the same load, the rest staying as it is.

    sessions_per_verifier: beyond, plain decoding gives more tokens per second and GPU, all GPUs counted; None: it does
    not at any load simulated.
    acceptance: of the first drafted token; below, a token costs more. None: it does even now.
    price: of one drafter GPU and hour; above, likewise. None: even for nothing.
    """
    assert mine.drafter is not None
    drafter = figures.drafters[mine.drafter]
    plain = next(cell for cell in plain_cells if cell.sessions == mine.sessions)
    spare = plain.price_per_million * mine.figures["tokens_per_s"] * 3600 / 1e6 - mine.price_per_hour
    price = drafter.price_per_hour + spare / mine.drafters
    return {
        "sessions_per_verifier": _crossing(_best_per_load(cells), _best_per_load(plain_cells)),
        "acceptance": _least_acceptance(figures, mine, plain.price_per_million, seed, report),
        "price": price / (drafter.gpus or 1.0) if price > 0 else None,
    }


def _crossing(mine: Sequence[Cell], plain: Sequence[Cell]) -> float | None:
    gains = [math.log(_worth(a) / _worth(b)) for a, b in zip(mine, plain, strict=True)]
    for i in range(len(gains) - 1, 0, -1):
        if gains[i - 1] > 0 >= gains[i]:
            share = gains[i - 1] / (gains[i - 1] - gains[i])
            return mine[i - 1].sessions * math.pow(mine[i].sessions / mine[i - 1].sessions, share)
    return None


def _least_acceptance(figures: Figures, mine: Cell, price: float, seed: int, report: Report) -> float | None:
    """Every conditional acceptance shrinks by one factor; halved on a line between none and all of it."""
    assert mine.drafter is not None
    drafter = figures.drafters[mine.drafter]

    def cost(factor: float) -> float:
        kept = tuple(share * factor**i for i, share in enumerate(drafter.survival, 1))
        weaker = figures.model_copy(
            update={"drafters": {mine.drafter: drafter.model_copy(update={"acceptance": kept})}}
        )
        return simulate(weaker, mine.drafter, mine.drafters, mine.sessions, seed).price_per_million

    if mine.price_per_million > price:
        return None
    low, high = 0.0, 1.0
    for i in range(_HALVINGS):
        report(f"{mine.drafter}: acceptance that breaks even, {i + 1} of {_HALVINGS}")
        middle = (low + high) / 2
        low, high = (low, middle) if cost(middle) <= price else (middle, high)
    return drafter.survival[0] * high


def _trace(figures: Figures, cell: Cell, replicas: Mapping[str, int], seed: int, report: Report) -> dict[str, Any]:
    """The traffic as it comes, from the replicas that its first phase needs up to a little more than its peak does."""
    first = figures.traffic.phases[0]
    sessions = first.clients if first.clients is not None else (first.requests_per_s or 0.0) * cell.request_s
    share = sessions / max(1.0, cell.sessions * replicas["verifier"])
    bounded = _bounded(figures, cell, replicas)
    start = {pool: max(1, math.ceil(count * share)) for pool, count in replicas.items()}
    simulation = Simulation(bounded, cell.drafter, start, scales=True, seed=seed)
    simulation.traffic()
    ends_s = sum(phase.seconds for phase in figures.traffic.phases)

    def ended() -> bool:
        now = simulation.env.now
        if now % 5 == 0:
            report(f"{cell.drafter or PLAIN}: {now:.0f} of {ends_s:.0f} s, {simulation.open} sessions")
        return now >= ends_s

    seconds = simulation.run(ended)
    price = sum(pool.replica_hours * pool.figures.price_per_hour for pool in simulation.pools)
    gpu_s = sum(3600 * pool.replica_hours * pool.figures.gpus for pool in simulation.pools)
    seen = simulation.total
    return {
        **seen.figures(seconds),
        "gpu_hours": gpu_s / 3600,
        "tokens_per_s_per_gpu": seen.tokens / gpu_s if gpu_s else math.nan,
        "price_per_million_tokens": price / seen.tokens * 1e6 if seen.tokens else math.nan,
        "most_sessions": max(row["requests"] for row in simulation.timeline),
        "most_replicas": {pool.role: max(row[pool.role] for row in simulation.timeline) for pool in simulation.pools},
        "timeline": simulation.timeline,
    }


def _bounded(figures: Figures, cell: Cell, replicas: Mapping[str, int]) -> Figures:
    """The figures with pools that aim at the cell's load and grow to little more than the plan."""

    def scaling(part: Any, pool: str, sessions: float) -> Any:
        most = min(part.replicas.max, math.ceil(_SLACK * replicas[pool]))
        aims = {"max": max(1, most), "min": min(part.replicas.min, most), "target_sessions": sessions}
        return part.model_copy(update={"replicas": part.replicas.model_copy(update=aims)})

    parts: dict[str, Any] = {
        "router": scaling(figures.router, "router", figures.router.replicas.target_sessions),
        "target": scaling(figures.target, "verifier", cell.sessions),
    }
    if cell.drafter is not None:
        sessions = cell.sessions * VERIFIERS / cell.drafters
        parts["drafters"] = {cell.drafter: scaling(figures.drafters[cell.drafter], "drafter", sessions)}
    return figures.model_copy(update=parts)
