"""What totals came to since the last look: the signals that pools are scaled by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from specserve.serving.stats import Stats


@dataclass(frozen=True, slots=True)
class Load:
    """A worker replica's, times in seconds. Shares are between 0 and 1.

    `queue_s` is the mean wait of a call before the step that answered it, `latency_s` its mean time to the reply;
    `occupancy` is the share of the token pool that is promised to sessions.
    """

    busy: float = 0.0
    queue_s: float = 0.0
    latency_s: float = 0.0
    occupancy: float = 0.0
    tokens_per_s: float = 0.0
    calls_per_s: float = 0.0


class Meter:
    """Turns a worker's totals into its load."""

    def __init__(self, now: float) -> None:
        self._last_s = now
        self._last: Mapping[str, float] = {}
        self.load = Load()

    def read(self, gauges: Mapping[str, float], now: float) -> Load:
        """The load since the last call; `gauges` as in `metrics.worker_samples`."""
        if not gauges or now <= self._last_s:  # a broken backend reports nothing
            return self.load
        seconds = now - self._last_s
        since = {name: gauges.get(name, 0.0) - self._last.get(name, 0.0) for name in gauges}
        calls, slots = since.get("calls", 0.0), gauges.get("slots", 0.0)
        self.load = Load(
            busy=min(since.get("busy_s", 0.0) / seconds, 1.0),
            queue_s=since.get("wait_s", 0.0) / calls if calls else 0.0,
            latency_s=since.get("latency_s", 0.0) / calls if calls else 0.0,
            occupancy=1.0 - gauges.get("slots_free", slots) / slots if slots else 0.0,
            tokens_per_s=(tokens(gauges) - tokens(self._last)) / seconds,
            calls_per_s=calls / seconds,
        )
        self._last_s, self._last = now, gauges
        return self.load


def tokens(gauges: Mapping[str, float]) -> float:
    """Tokens that a replica has computed: those it scored or took in, or of a drafter without a model, drafted."""
    return gauges.get("tokens_seen", gauges.get("drafted_tokens", 0.0))


@dataclass(frozen=True, slots=True)
class RouterLoad:
    """A router's: rounds per second, the share of their time spent waiting for drafts, and for each drafter the rounds
    per second that went on without the draft they waited for."""

    rounds_per_s: float = 0.0
    draft_wait: float = 0.0
    late_per_s: Mapping[str, float] = field(default_factory=dict)


class RouterMeter:
    """Turns a router's totals into its load."""

    def __init__(self, now: float) -> None:
        self._last_s, self._rounds, self._wall_s, self._draft_s = now, 0, 0.0, 0.0
        self._late: dict[str, int] = {}
        self.load = RouterLoad()

    def read(self, stats: Stats, now: float) -> RouterLoad:
        """The load since the last call."""
        seconds = now - self._last_s
        if seconds <= 0:
            return self.load
        wall_s = stats.wall_s - self._wall_s
        late = {name: drafter.late for name, drafter in stats.drafters.items()}
        self.load = RouterLoad(
            rounds_per_s=(stats.rounds - self._rounds) / seconds,
            draft_wait=(stats.draft_s - self._draft_s) / wall_s if wall_s > 0 else 0.0,
            late_per_s={name: (count - self._late.get(name, 0)) / seconds for name, count in late.items()},
        )
        self._last_s, self._rounds, self._wall_s, self._draft_s = now, stats.rounds, stats.wall_s, stats.draft_s
        self._late = late
        return self.load
