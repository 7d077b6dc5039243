"""What is exported, and the loads behind autoscaling."""

import pytest

from specserve.draft.ngram import NgramDrafter
from specserve.serving.load import Load, Meter, RouterMeter
from specserve.serving.metrics import COPIES, METRICS, ROUTER, WORKER, RouterSamples, copies_samples, worker_samples
from specserve.serving.stats import Served, Stats
from specserve.types import Draft, Propose, Round, Sampling, SessionSpec

GAUGES = {
    "sessions": 3.0,
    "slots": 100.0,
    "slots_used": 40.0,
    "slots_free": 30.0,
    "tokens_seen": 500.0,
    "busy_s": 2.0,
    "calls": 10,
    "wait_s": 0.5,
    "latency_s": 1.5,
}


def a_busy_router() -> Stats:
    stats = Stats()
    stats.round(Round(0.2, 0.1, 0.05), 3, prefill=False)
    stats.draft(Draft((1, 2), (-1, 0), ("ar", "ar")), (1, 2), (0,), reached=2)
    stats.drafter("ar").late += 2
    stats.request("stop", Served(1.0, 0.3))
    stats.request("cancelled", Served(0.5, None))
    stats.refused("Overloaded")
    return stats


def test_every_metric_of_a_router_and_of_a_worker_gets_a_sample():
    assert {s.metric for s in RouterSamples(a_busy_router())} == {m.name for m in ROUTER}
    assert {s.metric for s in worker_samples("ar", GAUGES, Load())} == {m.name for m in WORKER}


def test_an_ngram_drafter_gets_a_sample_of_every_metric_of_drafters_that_copy_and_other_workers_none():
    drafter = NgramDrafter()
    drafter.submit(Propose(1, 0, (1, 2, 1, 2), 2, SessionSpec(Sampling(), 4, 99)))
    drafter.step()
    samples = list(copies_samples("copy", drafter.stats()))
    assert {s.metric for s in samples} == {m.name for m in COPIES}
    assert ("copy", "context") in {s.tags for s in samples}
    assert all(len(s.tags) == len(m.tags) for s in samples for m in COPIES if m.name == s.metric)
    assert list(copies_samples("ar", GAUGES)) == []


def test_names_are_ours_and_samples_carry_the_tags_of_the_table():
    assert all(metric.name.startswith("specserve_") and metric.description for metric in METRICS)
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    tags = {metric.name: len(metric.tags) for metric in METRICS}
    for sample in (*RouterSamples(a_busy_router()), *worker_samples("ar", GAUGES, Load())):
        assert len(sample.tags) == tags[sample.metric]


def test_requests_are_counted_by_outcome_the_refused_ones_too():
    samples = {s.tags[0]: s.value for s in RouterSamples(a_busy_router()) if s.metric == "specserve_requests"}
    assert samples == {"stop": 1, "cancelled": 1, "Overloaded": 1}


def test_drafted_and_accepted_tokens_are_told_per_drafter():
    samples = {(s.metric, s.tags): s.value for s in RouterSamples(a_busy_router())}
    assert samples["specserve_drafted_tokens", ("ar",)] == 2
    assert samples["specserve_accepted_tokens", ("ar",)] == 1
    assert samples["specserve_late_drafts", ("ar",)] == 2


def test_a_request_is_observed_once():
    stats = a_busy_router()
    samples = RouterSamples(stats)

    def seconds() -> list[float]:
        return [s.value for s in samples if s.metric == "specserve_request_seconds"]

    assert sorted(seconds()) == [0.5, 1.0]
    assert seconds() == []
    stats.request("length", Served(2.0, 0.1))
    assert seconds() == [2.0]


def test_a_load_is_what_the_totals_have_grown_by():
    meter = Meter(now=0.0)
    meter.read(GAUGES, now=4.0)
    later = {**GAUGES, "tokens_seen": 900.0, "busy_s": 3.0, "calls": 20, "wait_s": 0.7, "latency_s": 2.5}
    load = meter.read(later, now=6.0)
    assert (load.busy, load.occupancy, load.tokens_per_s, load.calls_per_s) == (0.5, 0.7, 200.0, 5.0)
    assert load.queue_s == pytest.approx(0.02)
    assert load.latency_s == pytest.approx(0.1)


def test_a_replica_without_calls_has_no_delay_and_one_without_a_pool_no_occupancy():
    meter = Meter(now=0.0)
    meter.read({"sessions": 0.0, "calls": 5, "wait_s": 1.0}, now=1.0)
    assert meter.read({"sessions": 0.0, "calls": 5, "wait_s": 1.0}, now=2.0) == Load()


def test_a_routers_load_is_its_rounds_their_wait_and_what_came_late():
    stats = a_busy_router()
    meter = RouterMeter(now=0.0)
    meter.read(stats, now=1.0)
    for _ in range(4):
        stats.round(Round(0.2, 0.1, 0.05), 3, prefill=False)
    stats.drafter("ar").late += 1
    load = meter.read(stats, now=3.0)
    assert (load.rounds_per_s, load.late_per_s) == (2.0, {"ar": 0.5})
    assert load.draft_wait == pytest.approx(0.25)
