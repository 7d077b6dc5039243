"""Too little of everything: no drafter replica anywhere, and a pool that holds two sessions."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from live import MAIN, PROMPTS, Cluster, until

from specserve.errors import InvalidRequest, Overloaded
from specserve.types import Chunk

SCARCE: dict[str, Any] = {
    "target": {
        "model": "zoo:target",
        "dtype": "float32",
        "slots": 2000,
        "queue_timeout_s": 1.0,
        "max_draft_nodes": 16,
        "placement": {"num_cpus": 0.25},
    },
    "drafters": {
        # Needs what no node has; scales from zero, and never can.
        "absent": {"kind": "ngram", "replicas": {"min": 0, "max": 1}, "placement": {"resources": {"nowhere": 1}}}
    },
    "router": {"placement": {"num_cpus": 0.25}, "max_sessions": 4, "max_waiting": 0},
}


@pytest.fixture(scope="module")
def scarce(deploy: Callable[[dict[str, Any]], Cluster]) -> Cluster:
    return deploy(SCARCE)


def test_without_a_drafter_pool_decoding_is_plain(scarce: Cluster, reference: Callable[[str, int], list[int]]) -> None:
    with scarce.client() as client:
        answer = client.generate(PROMPTS[0], max_tokens=24, mode="on", drafters=["absent"])
    assert list(answer.token_ids) == reference(PROMPTS[0], 24)
    assert answer.usage.drafted_tokens == 0


def test_a_full_pool_queues_then_refuses_and_recovers(scarce: Cluster) -> None:
    with scarce.client() as client:
        holders = [client.stream(PROMPTS[0], max_tokens=850, ignore_eos=True) for _ in range(2)]
        for holder in holders:
            while not isinstance(next(holder), Chunk):
                pass
        with pytest.raises(Overloaded, match=r"no room for \d+ tokens"):
            client.generate(PROMPTS[1], max_tokens=300)
        queued: list[int] = []
        waiter = threading.Thread(
            target=lambda: queued.append(client.generate(PROMPTS[1], max_tokens=40).usage.emitted_tokens)
        )
        holders.pop().close()
        waiter.start()
        waiter.join(timeout=60)
        assert queued == [40]
        holders.pop().close()
    until(lambda: all(not a["sessions"] for a in scarce.where("Verifier").values()), "no session left")


def test_more_requests_than_admitted_are_refused_with_a_hint(scarce: Cluster) -> None:
    with scarce.client() as client:
        streams = [client.stream(PROMPTS[0], max_tokens=850, ignore_eos=True) for _ in range(4)]
        for stream in streams:
            next(stream)
        with pytest.raises(Overloaded, match="at most 4 requests are served and 0 wait") as caught:
            client.generate(PROMPTS[0], max_tokens=4)
        assert caught.value.retry_after_s > 0
        for stream in streams:
            stream.close()


def test_what_can_never_fit_the_pool_is_the_callers_fault(scarce: Cluster) -> None:
    with scarce.client() as client, pytest.raises(InvalidRequest, match="slots"):
        client.generate(PROMPTS[0], max_tokens=2000)


def test_a_config_with_a_typo_is_refused_before_anything_starts() -> None:
    from specserve.config import parse
    from specserve.errors import ConfigError

    with pytest.raises(ConfigError, match=r"'slotz' is no known key; did you mean 'slots'\?"):
        parse({**MAIN, "target": {**MAIN["target"], "slotz": 5}})
