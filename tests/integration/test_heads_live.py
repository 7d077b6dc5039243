"""Multi-token heads on a real Ray, over real gRPC, in both placements, while the verifier in use is killed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from live import PROMPTS, Cluster, replicas, until

from specserve.types import Chunk

HEADS = {"kind": "heads", "model": "zoo:heads-r4"}


@pytest.fixture(scope="module")
def headed(deploy: Callable[[dict[str, Any]], Cluster]) -> Cluster:
    placement = {"num_cpus": 0.25}
    verifiers = {"replicas": {"min": 2, "max": 2}, "placement": placement, "threads": 1, "slots": 4096}
    return deploy(
        {
            "target": {"model": "zoo:target", "dtype": "float32", **verifiers},
            "drafters": {"own": HEADS, "far": {**HEADS, "where": "remote", "placement": placement}},
            "router": {"placement": placement, "max_sessions": 8},
            "data_plane": {"secret": "of-the-tests"},
        }
    )


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "seed": 11}], ids=["greedy", "sampled"])
@pytest.mark.parametrize("drafter", ["own", "far"])
def test_a_verifier_killed_mid_stream_changes_nothing(
    headed: Cluster, drafter: str, sampling: dict[str, float]
) -> None:
    options: dict[str, Any] = {**sampling, "max_tokens": 96, "ignore_eos": True}
    with headed.client() as client:
        want = list(client.generate(PROMPTS[0], mode="off", **options).token_ids)
        got: list[int] = []
        killed = False
        for event in client.stream(PROMPTS[0], mode="on", drafters=[drafter], **options):
            if not isinstance(event, Chunk):
                continue
            got += (token.id for token in event.tokens)
            if len(got) >= 16 and not killed:
                killed = True
                (busy,) = [pid for pid, state in headed.where("Verifier").items() if state["sessions"]]
                headed.kill("Verifier", busy)
        usage = client.generate(PROMPTS[0], mode="on", drafters=[drafter], **options).usage
    assert killed
    assert got == want
    assert usage.drafters[drafter].accepted > 5
    until(lambda: len(replicas("Verifier")) == 2, "the second verifier back")
    until(lambda: not any(state["sessions"] for state in headed.where("Verifier").values()), "no session left")
