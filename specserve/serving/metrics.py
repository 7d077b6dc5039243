"""What is exported: one table of names, and the samples behind them. How they leave is the deployments' business."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Literal, NamedTuple

from specserve.serving.load import Load, tokens
from specserve.serving.stats import Stats
from specserve.types import NGRAM_STRATEGIES


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric as dashboards know it; seconds, tokens and counts are plain units.

    A counter's samples are totals. A histogram's samples are the single values seen since the last time.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    description: str
    tags: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def series(self) -> tuple[str, ...]:
        """The names that Prometheus sees, as Ray exports them."""
        ends = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}[self.kind]
        return tuple(f"ray_{self.name}{end}" for end in ends)


class Sample(NamedTuple):
    """A value of a metric, and its tags' values in the table's order."""

    metric: str
    value: float
    tags: tuple[str, ...] = ()


_SECONDS = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)

ROUTER = (
    Metric("specserve_requests", "counter", "Requests ended or turned away, by outcome.", ("outcome",)),
    Metric("specserve_request_seconds", "histogram", "Admission to the end of a request.", (), _SECONDS),
    Metric("specserve_first_token_seconds", "histogram", "Admission to the first token.", (), _SECONDS),
    Metric("specserve_sessions", "gauge", "Sessions open now."),
    Metric("specserve_waiting_requests", "gauge", "Requests that wait for admission now."),
    Metric("specserve_rounds", "counter", "Rounds verified, prefills included."),
    Metric("specserve_emitted_tokens", "counter", "Tokens that reached clients."),
    Metric("specserve_round_seconds", "counter", "Wall time of all rounds, one verdict to the next."),
    Metric("specserve_forward_seconds", "counter", "Of the rounds' wall time, the target's forward passes."),
    Metric("specserve_draft_wait_seconds", "counter", "Of the rounds' wall time, the wait for drafts."),
    Metric("specserve_lost_sessions", "counter", "Times a verifier did not hold a session as expected."),
    Metric("specserve_rebuilt_sessions", "counter", "Times a session was taken to another verifier."),
    Metric("specserve_drafted_tokens", "counter", "Drafted tokens that were verified.", ("drafter",)),
    Metric("specserve_accepted_tokens", "counter", "Drafted tokens that were accepted.", ("drafter",)),
    Metric("specserve_late_drafts", "counter", "Rounds that went on without the draft they waited for.", ("drafter",)),
    Metric("specserve_lost_drafters", "counter", "Leases on drafter replicas that were lost.", ("drafter",)),
)

DATA_PLANE = (
    Metric("specserve_data_plane_sent_bytes", "counter", "Bytes a router has sent to workers."),
    Metric("specserve_data_plane_received_bytes", "counter", "Bytes a router has received from workers."),
)

WORKER = (
    Metric("specserve_worker_sessions", "gauge", "Sessions this replica holds.", ("pool",)),
    Metric("specserve_worker_queued_sessions", "gauge", "Sessions that wait for room in the token pool.", ("pool",)),
    Metric("specserve_worker_busy_share", "gauge", "Share of the last second spent computing, 0 to 1.", ("pool",)),
    Metric("specserve_worker_busy_seconds", "counter", "Time spent computing.", ("pool",)),
    Metric("specserve_worker_queue_delay_seconds", "gauge", "Mean wait of a call before its step.", ("pool",)),
    Metric("specserve_worker_latency_seconds", "gauge", "Mean time from a call's arrival to its reply.", ("pool",)),
    Metric("specserve_worker_calls", "counter", "Calls answered: verdicts, proposals, refusals.", ("pool",)),
    Metric("specserve_worker_tokens", "counter", "Tokens computed: scored by a verifier, else drafted.", ("pool",)),
    Metric("specserve_worker_ahead_seconds", "counter", "Time a verifier spent on drafts of its own.", ("pool",)),
    Metric("specserve_worker_feature_bytes", "counter", "Hidden states that left with verdicts.", ("pool",)),
    Metric("specserve_worker_slots", "gauge", "Tokens that the replica's pool can hold.", ("pool",)),
    Metric("specserve_worker_slots_used", "gauge", "Tokens that it holds.", ("pool",)),
    Metric("specserve_worker_occupancy", "gauge", "Share of the slots promised to sessions, 0 to 1.", ("pool",)),
)

COPIES = (
    Metric("specserve_strategy_drafted_tokens", "counter", "Tokens drafted by a strategy.", ("pool", "strategy")),
    Metric("specserve_strategy_accepted_tokens", "counter", "Of these, accepted.", ("pool", "strategy")),
    Metric("specserve_draft_rows", "gauge", "Mean rows (k) of a draft that copies.", ("pool",)),
    Metric("specserve_draft_depth", "gauge", "Mean depth (w) of a draft that copies, in tokens.", ("pool",)),
    Metric("specserve_draft_batch_seconds", "gauge", "Mean time to draft for a batch of sessions.", ("pool",)),
    Metric("specserve_memory_bytes", "gauge", "Bytes of past outputs that are kept to copy from.", ("pool",)),
    Metric("specserve_memory_limit_bytes", "gauge", "Their bound.", ("pool",)),
    Metric("specserve_memory_evicted_tenants", "counter", "Tenants forgotten to keep the bound.", ("pool",)),
)

AUTOSCALING = (
    Metric("specserve_autoscaling_replicas", "gauge", "Replicas that the policy wants.", ("deployment",)),
    Metric(
        "specserve_autoscaling_decisions",
        "counter",
        "Times the policy changed its mind, by direction (up, down, stay) and by the signal that moved it.",
        ("deployment", "direction", "signal"),
    ),
)

METRICS = (*ROUTER, *DATA_PLANE, *WORKER, *COPIES, *AUTOSCALING)


class RouterSamples:
    """Samples of a router's Stats. Remembers which requests it has reported."""

    def __init__(self, stats: Stats) -> None:
        self._stats, self._seen = stats, 0

    def __iter__(self) -> Iterator[Sample]:
        stats = self._stats
        for outcome, count in stats.outcomes.items():
            yield Sample("specserve_requests", count, (outcome,))
        new, self._seen = stats.requests - self._seen, stats.requests
        for served in islice(reversed(stats.served), new):
            yield Sample("specserve_request_seconds", served.seconds)
            if served.first_token_s is not None:
                yield Sample("specserve_first_token_seconds", served.first_token_s)
        yield Sample("specserve_sessions", stats.sessions)
        yield Sample("specserve_waiting_requests", stats.waiting)
        yield Sample("specserve_rounds", stats.rounds)
        yield Sample("specserve_emitted_tokens", stats.emitted)
        yield Sample("specserve_round_seconds", stats.wall_s)
        yield Sample("specserve_forward_seconds", stats.forward_s)
        yield Sample("specserve_draft_wait_seconds", stats.draft_s)
        yield Sample("specserve_lost_sessions", stats.lost)
        yield Sample("specserve_rebuilt_sessions", stats.rebuilt)
        for name, drafter in stats.drafters.items():
            yield Sample("specserve_drafted_tokens", sum(drafter.drafted), (name,))
            yield Sample("specserve_accepted_tokens", sum(drafter.accepted), (name,))
            yield Sample("specserve_late_drafts", drafter.late, (name,))
            yield Sample("specserve_lost_drafters", drafter.died, (name,))


def worker_samples(pool: str, gauges: Mapping[str, float], load: Load) -> Iterable[Sample]:
    """Samples of a worker replica.

    Args:
        gauges: of its backend (`Backend.stats`) and its loop (`WorkerLoop.service`), by name.
        load: what they came to since the last time.
    """
    values = {
        "sessions": gauges.get("sessions", 0.0),
        "queued_sessions": gauges.get("queued", 0.0),
        "busy_share": load.busy,
        "busy_seconds": gauges.get("busy_s", 0.0),
        "queue_delay_seconds": load.queue_s,
        "latency_seconds": load.latency_s,
        "calls": gauges.get("calls", 0.0),
        "tokens": tokens(gauges),
        "ahead_seconds": gauges.get("draft_s", 0.0),
        "feature_bytes": gauges.get("feature_bytes", 0.0),
        "slots": gauges.get("slots", 0.0),
        "slots_used": gauges.get("slots_used", 0.0),
        "occupancy": load.occupancy,
    }
    return [Sample(f"specserve_worker_{name}", value, (pool,)) for name, value in values.items()]


def copies_samples(pool: str, gauges: Mapping[str, float]) -> Iterator[Sample]:
    """Samples of a drafter that copies, by its backend's gauges; none of another worker."""
    for strategy in NGRAM_STRATEGIES:
        if f"{strategy}_drafted_tokens" in gauges:
            for what in ("drafted", "accepted"):
                value = gauges[f"{strategy}_{what}_tokens"]
                yield Sample(f"specserve_strategy_{what}_tokens", value, (pool, strategy))
    for name, gauge, unit in (
        ("draft_rows", "rows_per_draft", 1.0),
        ("draft_depth", "depth_per_draft", 1.0),
        ("draft_batch_seconds", "batch_ms", 1e-3),
        ("memory_bytes", "memory_bytes", 1.0),
        ("memory_limit_bytes", "memory_limit_bytes", 1.0),
        ("memory_evicted_tenants", "tenants_evicted", 1.0),
    ):
        if gauge in gauges:
            yield Sample(f"specserve_{name}", unit * gauges[gauge], (pool,))
