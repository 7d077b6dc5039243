"""A discrete-event simulation of everything between a request and its last token.

Routers, leases, pools, batches, drafts and the autoscaler are as in `serving` and `deployments`; what a step costs and
how much of a draft is accepted are the figures'. When a batch waits is decided by the real `serving.rejoin`, replica
counts by the real `serving.autoscale`, the depth of drafts by the rule of `serving.policy` with known figures in place
of learned ones. Nothing fails here.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from typing import Any, cast

from simpy import Environment

from specserve.planning.depth import Depths
from specserve.planning.figures import Drafter, Figures
from specserve.planning.pools import Pool
from specserve.planning.replica import DrafterReplica, Process, RouterReplica, VerifierReplica
from specserve.planning.scaling import autoscale
from specserve.planning.seen import Seen
from specserve.planning.session import Session
from specserve.serving.stats import Stats


class Simulation:
    """One run.

    Args:
        drafter: of `figures.drafters`; None is plain decoding.
        replicas: running at the start, of "router", "verifier" and "drafter".
        scales: whether the autoscaler runs.
    """

    def __init__(
        self, figures: Figures, drafter: str | None, replicas: Mapping[str, int], *, scales: bool = False, seed: int = 0
    ) -> None:
        self.env = env = Environment()
        self.figures, self._rng = figures, random.Random(seed)
        self.seen, self.total = Seen(), Seen()  # in this second, before it
        self.stats = Stats()
        self.timeline: list[dict[str, float]] = []  # a row for each second, without what nothing was seen of
        self.open = 0  # requests under way
        self._clients: set[int] = set()
        self._wanted, self._ids = 0, 0
        router, target = figures.router, figures.target
        self.drafters: Pool[DrafterReplica] | None = None
        self.routers = Pool(env, "router", router, lambda: RouterReplica(env, router), replicas["router"], self._rng)
        self.verifiers = Pool(
            env, "verifier", target, lambda: VerifierReplica(env, target, router), replicas["verifier"], self._rng
        )
        self.pools: list[Pool[Any]] = [self.routers, self.verifiers]
        if drafter is not None:
            self._speculate(figures.drafters[drafter], replicas["drafter"])
        if scales:
            env.process(autoscale(self))

    def _speculate(self, drafter: Drafter, replicas: int) -> None:
        env, router = self.env, self.figures.router
        self.drafters = Pool(env, "drafter", drafter, lambda: DrafterReplica(env, drafter, router), replicas, self._rng)
        self.pools.append(self.drafters)
        self.depth = Depths(self.figures.target, drafter, router).best
        self._survival = drafter.survival

    def run(self, until: Callable[[], bool]) -> float:
        """Go on, second by second, until it holds. The seconds simulated."""
        began = self.env.now
        while not until():
            self.env.run(self.env.now + 1.0)
            self._note()
        return self.env.now - began

    def accepted(self, depth: int) -> int:
        """How much of a draft so deep is kept."""
        if depth == 0:
            return 0
        luck, kept = self._rng.random(), 0
        for share in self._survival[:depth]:
            if luck >= share:
                break
            kept += 1
        return kept

    def _note(self) -> None:
        seen = self.seen
        row = {
            "at_s": self.env.now,
            "requests": float(self.open),
            "tokens_per_s": float(seen.tokens),
            "ttft_ms_p95": 1e3 * seen.first_token.quantile(0.95),
            "ms_per_token_p95": 1e3 * seen.per_token.quantile(0.95),
        }
        row |= {pool.role: float(len(pool.running)) for pool in self.pools}
        self.timeline.append({name: value for name, value in row.items() if not math.isnan(value)})
        self.total += seen
        self.seen = Seen()

    # Who asks.

    def clients(self, count: int, stagger_s: float = 0.0) -> None:
        """From now on so many clients ask again and again. New ones begin within `stagger_s`; surplus ones stop when
        they have their answer."""
        self._wanted = count
        for i in sorted(set(range(count)) - self._clients):
            self._clients.add(i)
            self.env.process(self._client(i, stagger_s))

    def traffic(self) -> None:
        """The figures' phases, one after the other."""
        self.env.process(self._phases())

    def _client(self, i: int, stagger_s: float) -> Process:
        yield self.env.timeout(self._rng.random() * stagger_s)
        while i < self._wanted:
            yield from self._request()
        self._clients.remove(i)

    def _phases(self) -> Process:
        env = self.env
        for phase in self.figures.traffic.phases:
            ends_s = env.now + phase.seconds
            self.clients(phase.clients or 0)
            if phase.requests_per_s:
                while (at_s := env.now + self._rng.expovariate(phase.requests_per_s)) < ends_s:
                    yield env.timeout(at_s - env.now)
                    env.process(self._request())
            yield env.timeout(ends_s - env.now)

    def _request(self) -> Process:
        """From its arrival to its last token."""
        began, traffic, routers = self.env.now, self.figures.traffic, self.routers
        prompt, tokens = self._length(traffic.prompt_tokens), self._length(traffic.output_tokens)
        self.open += 1
        if len(routers.waiting) < self.figures.router.max_waiting * max(1, len(routers.running)):
            router = yield routers.lease()
            served = yield from self._served(router, prompt, tokens, began)
            routers.release(router)
        else:
            served = False
            yield self.env.timeout(1.0)  # as the refusal hints
        self.open -= 1
        if served:
            self.seen.requests += 1
            self.seen.request.add(self.env.now - began)
        else:
            self.seen.refused += 1

    def _served(self, router: RouterReplica, prompt: int, tokens: int, began: float) -> Process:
        """Whether it was."""
        yield self.env.timeout(self.figures.router.open_ms / 1e3)
        lease = self.verifiers.lease()
        if not lease.triggered:
            yield lease | self.env.timeout(self.figures.router.lease_timeout_s)
        if not lease.triggered:
            self.verifiers.give_up(lease)
            return False
        self._ids += 1
        session = Session(self, self._ids, router, cast(VerifierReplica, lease.value), prompt, tokens, began)
        yield from session.rounds()
        session.close()
        return True

    def _length(self, mean: int) -> int:
        spread = self.figures.traffic.spread
        if spread == 0:
            return mean
        sigma = math.sqrt(math.log1p(spread * spread))
        return max(1, round(mean * math.exp(self._rng.gauss(-sigma * sigma / 2, sigma))))
