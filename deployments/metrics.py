"""Samples leave as Ray application metrics, about once a second. Prometheus sees them as `ray_specserve_...`."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable

from ray.serve import metrics

from specserve.serving.metrics import Metric, Sample

_EVERY_S = 1.0

logger = logging.getLogger(__name__)


class Exporter:
    """Ray's metrics behind a table. In a replica Serve adds the tags deployment, replica and application by itself."""

    def __init__(self, table: Iterable[Metric]) -> None:
        self._metrics = {metric.name: (metric, _make(metric)) for metric in table}
        self._totals: dict[tuple[str, tuple[str, ...]], float] = {}

    def push(self, samples: Iterable[Sample]) -> None:
        """Counters move by what their totals have grown since the last time."""
        for name, value, values in samples:
            metric, made = self._metrics[name]
            tags = dict(zip(metric.tags, values, strict=True))
            if metric.kind == "gauge":
                made.set(float(value), tags=tags)
            elif metric.kind == "histogram":
                made.observe(float(value), tags=tags)
            else:
                grown = value - self._totals.get((name, values), 0.0)
                if grown > 0:
                    made.inc(float(grown), tags=tags)
                    self._totals[name, values] = value


def _make(metric: Metric) -> metrics.Counter | metrics.Gauge | metrics.Histogram:
    if metric.kind == "counter":
        return metrics.Counter(metric.name, metric.description, metric.tags)
    if metric.kind == "gauge":
        return metrics.Gauge(metric.name, metric.description, metric.tags)
    return metrics.Histogram(metric.name, metric.description, list(metric.buckets), metric.tags)


async def every_second(push: Callable[[], Awaitable[None]]) -> None:
    """Call `push` about once a second, for ever. What goes wrong there is logged and costs nothing else."""
    while True:
        await asyncio.sleep(_EVERY_S)
        try:
            await push()
        except Exception:
            logger.exception("metrics could not be pushed")
