"""Figures small enough to work out by hand."""

from collections.abc import Callable
from typing import Any

import pytest

from specserve.planning.figures import Figures, parse

TARGET: dict[str, Any] = {"step_ms": 10.0, "token_ms": 0.0}
DRAFTER: dict[str, Any] = {"step_ms": 1.0, "acceptance": [1.0, 1.0, 1.0, 0.0], "depth": 4}


@pytest.fixture(scope="session")
def figures() -> Callable[..., Figures]:
    """Figures with some parts changed. A call takes 1 ms unless said, and messages nothing."""

    def make(drafter: dict[str, Any] | None = None, phases: Any = None, **parts: dict[str, Any]) -> Figures:
        given: dict[str, Any] = {
            "target": {**TARGET, **parts.get("target", {})},
            "drafters": {} if drafter is None else {"small": {**DRAFTER, **drafter}},
            "router": {"open_ms": 0, "call_ms": 1, "message_ms": 0, **parts.get("router", {})},
            "traffic": {
                "phases": phases or [{"seconds": 10, "clients": 8}],
                "prompt_tokens": 16,
                "output_tokens": 41,
                "spread": 0.0,
                **parts.get("traffic", {}),
            },
            **{name: part for name, part in parts.items() if name not in ("target", "router", "traffic")},
        }
        return parse(given)

    return make
