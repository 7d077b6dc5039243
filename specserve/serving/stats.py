"""What a router counts. Plain numbers: deployments export them, the bench reads them."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from specserve.types import Draft, Round


class Served(NamedTuple):
    """How long a request took from its admission, in seconds. `first_token_s` is None when no token came."""

    seconds: float
    first_token_s: float | None


@dataclass(slots=True)
class DrafterStats:
    """Totals of one drafter. Index i counts depth i+1."""

    drafted: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    late: int = 0  # rounds that went on without the draft they had waited for
    died: int = 0  # leases lost


@dataclass(slots=True)
class Stats:
    """Totals since the start, gauges, and the latest rounds that were no prefill."""

    sessions: int = 0  # open now
    waiting: int = 0  # for admission, now
    requests: int = 0
    failed: int = 0  # requests that ended in an error, cancelled ones included
    outcomes: Counter[str] = field(default_factory=Counter)  # stop, length, cancelled, deadline or an error's name
    rounds: int = 0
    emitted: int = 0
    wall_s: float = 0.0
    forward_s: float = 0.0
    draft_s: float = 0.0
    lost: int = 0  # sessions that a worker did not hold as expected
    rebuilt: int = 0  # sessions taken to another verifier
    drafters: dict[str, DrafterStats] = field(default_factory=dict)
    measured: dict[str, Mapping[str, float]] = field(default_factory=dict)  # by a replica of each drafter, the latest
    latest: deque[Round] = field(default_factory=lambda: deque(maxlen=4096))
    served: deque[Served] = field(default_factory=lambda: deque(maxlen=4096))  # of the requests, the latest

    def drafter(self, name: str) -> DrafterStats:
        stats = self.drafters.get(name)
        if stats is None:
            stats = self.drafters[name] = DrafterStats()
        return stats

    def request(self, outcome: str, served: Served) -> None:
        """An admitted request has ended."""
        self.requests += 1
        self.failed += outcome not in ("stop", "length")
        self.outcomes[outcome] += 1
        self.served.append(served)

    def refused(self, why: str) -> None:
        """A request was turned away before anything was started for it."""
        self.outcomes[why] += 1

    def round(self, round_: Round, emitted: int, prefill: bool) -> None:
        """A verdict was applied; `prefill` when it also took many committed tokens in."""
        self.rounds += 1
        self.emitted += emitted
        self.wall_s += round_.wall_s
        self.forward_s += round_.forward_s
        self.draft_s += round_.draft_s
        if not prefill:
            self.latest.append(round_)

    def draft(self, draft: Draft, depths: tuple[int, ...], accepted: tuple[int, ...], reached: int) -> None:
        """A draft was judged; `depths[i]` is node i's. Nothing deeper than `reached` counts: a stop cut it off."""
        for node, name in enumerate(draft.drafters):
            stats, depth = self.drafter(name), depths[node]
            if depth > reached:
                continue
            while len(stats.drafted) < depth:
                stats.drafted.append(0)
                stats.accepted.append(0)
            stats.drafted[depth - 1] += 1
        for node in accepted[:reached]:
            self.drafters[draft.drafters[node]].accepted[depths[node] - 1] += 1

    def summary(self) -> dict[str, float]:
        """Flat, units in the names."""
        summary = {
            "open_sessions": float(self.sessions),
            "waiting_requests": float(self.waiting),
            "requests": float(self.requests),
            "failed_requests": float(self.failed),
            "rounds": float(self.rounds),
            "emitted_tokens": float(self.emitted),
            "lost_sessions": float(self.lost),
            "rebuilt_sessions": float(self.rebuilt),
        }
        if self.rounds:
            summary["tokens_per_round"] = self.emitted / self.rounds
        if self.latest:
            summary["round_ms_p50"] = 1e3 * _median([r.wall_s for r in self.latest])
            summary["forward_ms_p50"] = 1e3 * _median([r.forward_s for r in self.latest])
            summary["draft_wait_ms_p50"] = 1e3 * _median([r.draft_s for r in self.latest])
            summary["overhead_ms_p50"] = 1e3 * _median([r.wall_s - r.forward_s for r in self.latest])
        for name, drafter in self.drafters.items():
            summary[f"{name}_drafted_tokens"] = float(sum(drafter.drafted))
            summary[f"{name}_accepted_tokens"] = float(sum(drafter.accepted))
            summary[f"{name}_late"] = float(drafter.late)
            summary[f"{name}_died"] = float(drafter.died)
        for name, measured in self.measured.items():
            summary |= {f"{name}.{what}": value for what, value in measured.items()}
        return summary


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]
