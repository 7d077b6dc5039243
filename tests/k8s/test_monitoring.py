"""Alerts and dashboard ask for metrics, tags and outcomes that the application exports."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from manifests import K8S

from specserve import errors
from specserve.serving.metrics import METRICS
from specserve.types import FinishReason

promql_parser = pytest.importorskip("promql_parser", reason="the test extra installs promql-parser")

SERIES = {series: metric for metric in METRICS for series in metric.series}
# What Ray and Serve add by themselves, and Prometheus' own of a histogram.
ALWAYS = {"deployment", "replica", "application", "le"}
OUTCOMES = {reason.value for reason in FinishReason} | {n for n, c in vars(errors).items() if isinstance(c, type)}


def _alerts() -> Iterator[tuple[str, str]]:
    for group in yaml.safe_load((K8S / "monitoring/alerts.yaml").read_text())["spec"]["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]


def _panels() -> Iterator[tuple[str, str]]:
    for panel in json.loads((K8S / "monitoring/dashboard.json").read_text())["panels"]:
        for target in panel["targets"]:
            yield f"{panel['title']}, {target['refId']}", target["expr"]


QUERIES = {**dict(_alerts()), **dict(_panels())}


def wrong(query: str) -> list[str]:
    """What in a query nothing exports; PromQL's own mistakes are ValueErrors."""
    found: list[str] = []
    tags: set[str] = set(ALWAYS)
    grouped: set[str] = set()

    def visit(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            metric = SERIES.get(node.name)
            if metric is None:
                found.append(f"no metric {node.name}")
                return
            tags.update(metric.tags)
            for matcher in node.matchers.matchers:
                if matcher.name not in {*metric.tags, *ALWAYS}:
                    found.append(f"{node.name} has no tag {matcher.name}")
                if matcher.name == "outcome":
                    found.extend(f"no outcome {value}" for value in matcher.value.split("|") if value not in OUTCOMES)
        elif isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            grouped.update(node.modifier.labels)

    promql_parser.walk(promql_parser.parse(query), visit)
    return found + [f"no metric of the query has tag {tag}" for tag in sorted(grouped - tags)]


@pytest.mark.parametrize("name", QUERIES)
def test_a_query_asks_for_what_is_exported(name: str) -> None:
    assert wrong(QUERIES[name]) == []


@pytest.mark.parametrize(
    ("query", "complaint"),
    [
        ("sum(rate(ray_specserve_emited_tokens_total[1m]))", "no metric ray_specserve_emited_tokens_total"),
        ("sum(rate(ray_specserve_emitted_tokens[1m]))", "no metric ray_specserve_emitted_tokens"),
        ("ray_specserve_first_token_seconds", "no metric ray_specserve_first_token_seconds"),
        ("ray_specserve_worker_occupancy{drafter='ar'}", "has no tag drafter"),
        ("sum by (pol) (ray_specserve_worker_occupancy)", "has tag pol"),
        ('ray_specserve_requests_total{outcome="OVERLOADED"}', "no outcome OVERLOADED"),
    ],
)
def test_a_typo_in_a_query_is_caught(query: str, complaint: str) -> None:
    assert complaint in "\n".join(wrong(query))


def test_a_query_that_is_no_promql_is_caught() -> None:
    with pytest.raises(ValueError, match=r"."):
        wrong("sum(rate(ray_specserve_rounds_total[1m])")


def test_a_panel_shows_the_tags_that_its_legend_names() -> None:
    import re

    for panel in json.loads((K8S / "monitoring/dashboard.json").read_text())["panels"]:
        for target in panel["targets"]:
            for tag in re.findall(r"{{(\w+)}}", target["legendFormat"]):
                assert f"by ({tag})" in target["expr"], panel["title"]


def test_panels_do_not_overlap_and_have_their_own_ids() -> None:
    panels = json.loads((K8S / "monitoring/dashboard.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for panel in panels
        for at in [panel["gridPos"]]
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert all(x < 24 for x, _ in cells)
