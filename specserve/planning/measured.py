"""Figures out of the JSON of `specserve bench CONFIG`: what a pass costs, what a draft costs, how much of it is kept.

The bench gives medians by arm and number of clients. A pass is fitted to all of them as

    forward = step + (b - 1) · session + (n - b) · token

for a batch of b sessions and n positions, least squares in proportion. Waits for drafts hold the drafter's queue too,
so that a drafter's cost per token comes out high rather than low.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from specserve.errors import ConfigError

_PLAIN = "off"


@dataclass(frozen=True, slots=True)
class Point:
    """One arm with one number of clients; times in milliseconds. `depth`: mean drafted tokens of a round."""

    forward: float
    batch: float
    depth: float
    wait: float = 0.0


def read(path: Path, drafter: str | None = None) -> dict[str, Any]:
    """Parts of `figures.Figures`: target, router, and a drafter where an arm had one.

    Args:
        drafter: the arm that is the drafter; None is the first that drafts.
    Raises:
        ConfigError: the file is not such a JSON, or has no such arm.
    """
    try:
        levels = json.loads(path.read_text())["levels"]
        level = min(levels, key=int)
        arms: dict[str, Any] = {name: arm for name, arm in levels[level].items() if "forward_ms_p50" in arm}
        call_ms = arms[_PLAIN]["round_overhead_without_drafting_ms_p50"]
        drafting = [name for name in arms if arms[name]["acceptance_by_position"]]
        name = drafter or next(iter(drafting), None)
        if name is not None and name not in drafting:
            raise ConfigError(f"drafter must be one of the arms {', '.join(drafting)}; got {name!r}")
        points = {arm: [_point(figures[arm]) for figures in levels.values() if arm in figures] for arm in arms}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"bench {path}: must be the JSON of `specserve bench CONFIG`; {error!r}") from error
    found = {"target": fit_pass([p for arm in points.values() for p in arm]), "router": {"call_ms": call_ms}}
    if name is not None:
        kept = [min(1.0, share) for share in arms[name]["acceptance_by_position"]]
        found["drafters"] = {name: {**fit_draft(points[name], call_ms), "acceptance": kept}}
    return found


def _point(arm: Mapping[str, Any]) -> Point:
    kept = list(accumulate(arm["acceptance_by_position"], min))
    depth = _depth(arm["tokens_per_round"], kept)
    return Point(arm["forward_ms_p50"], arm["verify_batch_mean"], depth, arm["draft_wait_ms_p50"])


def _depth(tokens: float, kept: list[float]) -> float:
    """The depth of drafts that explains so many tokens a round."""
    expected = [1.0, *(1.0 + total for total in accumulate(kept))]
    return float(np.interp(tokens, expected, range(len(expected))))


def fit_pass(points: Iterable[Point]) -> dict[str, float]:
    """A target's costs."""
    points = list(points)
    rows = [[1.0, p.batch - 1, p.batch * p.depth] for p in points]
    step, session, token = _fit(rows, [p.forward for p in points])
    return {"step_ms": step, "session_ms": session, "token_ms": token}


def fit_draft(points: Iterable[Point], call_ms: float) -> dict[str, float]:
    """A drafter's costs; all sessions of a verifier's batch draft together."""
    points = [point for point in points if point.depth]
    rows = [[p.depth, p.depth * p.batch] for p in points]
    step, token = _fit(rows, [max(p.wait - call_ms, 1e-3) for p in points])
    return {"step_ms": step, "token_ms": token}


def _fit(rows: list[list[float]], values: list[float]) -> list[float]:
    """Coefficients of at least 0, errors in proportion to the values: without the worst negative one until none is."""
    given = np.array(rows) / np.array(values)[:, None]
    kept = list(range(given.shape[1]))
    while True:
        found, *_ = np.linalg.lstsq(given[:, kept], np.ones(len(values)), rcond=None)
        if min(found) >= 0 or len(kept) == 1:
            whole = np.zeros(given.shape[1])
            whole[kept] = np.maximum(found, 0)
            return [float(value) for value in whole]
        kept.pop(int(np.argmin(found)))
