"""One load of a few verifiers and their drafters, simulated until it is steady: the unit that plans are made of."""

from __future__ import annotations

import math
from dataclasses import dataclass

from specserve.planning.figures import Figures
from specserve.planning.seen import Seen
from specserve.planning.simulation import Simulation

VERIFIERS = 4  # of a cell
_LEAST_REQUESTS = 40  # that a figure rests on


@dataclass(frozen=True, slots=True)
class Cell:
    """What so many sessions per verifier get, and what it costs.

    Args:
        drafter: its pool; None is plain decoding.
        drafters: replicas beside the VERIFIERS.
        sessions: per verifier, always busy.
        figures: as in `Seen.figures`, of the whole cell.
        gpus: verifiers' and drafters' together.
        price_per_hour: of all replicas, routers included.
    """

    drafter: str | None
    drafters: int
    sessions: int
    figures: dict[str, float]
    gpus: float
    price_per_hour: float

    @property
    def tokens_per_s_per_gpu(self) -> float:
        return self.figures["tokens_per_s"] / self.gpus if self.gpus else math.nan

    @property
    def price_per_million(self) -> float:
        """Of tokens."""
        return self.price_per_hour / (self.figures["tokens_per_s"] * 3600) * 1e6

    @property
    def request_s(self) -> float:
        """Mean."""
        return self.sessions * VERIFIERS / self.figures["requests_per_s"]

    def meets(self, figures: Figures) -> bool:
        goals = figures.goals
        return self.figures["ttft_ms_p95"] <= goals.ttft_ms and self.figures["ms_per_token_p95"] <= goals.ms_per_token


def simulate(figures: Figures, drafter: str | None, drafters: int, sessions: int, seed: int = 0) -> Cell:
    """Clients that ask again and again: as many requests to settle as there are clients, then as many to measure."""
    clients = sessions * VERIFIERS
    routers = math.ceil(clients / figures.router.replicas.target_sessions)
    replicas = {"router": routers, "verifier": VERIFIERS, "drafter": drafters}
    simulation = Simulation(figures, drafter, replicas, seed=seed)
    simulation.clients(clients, stagger_s=1.0)
    for _ in range(2):
        simulation.total = Seen()
        seconds = simulation.run(lambda: simulation.total.requests >= max(clients, _LEAST_REQUESTS))
    target, router = figures.target, figures.router
    gpus = VERIFIERS * target.gpus
    price = VERIFIERS * target.price_per_hour + routers * router.price_per_hour
    if drafter is not None:
        gpus += drafters * figures.drafters[drafter].gpus
        price += drafters * figures.drafters[drafter].price_per_hour
    return Cell(drafter, drafters, sessions, simulation.total.figures(seconds), gpus, price)
