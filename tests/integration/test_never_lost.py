"""Never lost: real processes are killed, and the stream goes on with the same text."""

import pytest
from live import PROMPTS, Cluster, replicas, until

from specserve.errors import Unavailable
from specserve.types import Chunk, Finished

GREEDY = {"temperature": 0.0}
SAMPLED = {"temperature": 1.0, "seed": 11}


def _with_a_fault(cluster: Cluster, fault: object, after: int = 16, **options: object) -> list[int]:
    """Token ids of one stream, with `fault()` once `after` tokens have come."""
    ids: list[int] = []
    finished = False
    with cluster.client() as client:
        for event in client.stream(PROMPTS[0], **options):
            if isinstance(event, Chunk):
                ids += (token.id for token in event.tokens)
                if fault is not None and len(ids) >= after:
                    fault()  # type: ignore[operator]
                    fault = None
            finished = isinstance(event, Finished)
    assert finished
    assert fault is None, "the stream ended before the fault"
    return ids


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("drafter", ["ngram", "ar"])
def test_a_drafter_killed_mid_stream_changes_nothing(
    cluster: Cluster, drafter: str, sampling: dict[str, float]
) -> None:
    options = {**sampling, "max_tokens": 96, "mode": "on", "drafters": [drafter]}
    with cluster.client() as client:
        undisturbed = list(client.generate(PROMPTS[0], **options).token_ids)
    before = set(replicas(f"Drafter-{drafter}"))
    got = _with_a_fault(cluster, lambda: cluster.kill(f"Drafter-{drafter}"), **options)
    assert got == undisturbed
    until(lambda: replicas(f"Drafter-{drafter}") and not set(replicas(f"Drafter-{drafter}")) & before, "a new drafter")


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_verifier_killed_mid_stream_loses_and_repeats_nothing(cluster: Cluster, sampling: dict[str, float]) -> None:
    options = {**sampling, "max_tokens": 96, "mode": "on"}
    with cluster.client() as client:
        undisturbed = list(client.generate(PROMPTS[0], **options).token_ids)

    def kill_the_one_in_use() -> None:
        busy = [pid for pid, state in cluster.where("Verifier").items() if state["sessions"]]
        assert len(busy) == 1
        cluster.kill("Verifier", busy[0])

    assert _with_a_fault(cluster, kill_the_one_in_use, **options) == undisturbed
    until(lambda: len(replicas("Verifier")) == 2, "the second verifier back")


def test_a_worker_that_has_forgotten_its_sessions_is_told_again(cluster: Cluster) -> None:
    options = {**SAMPLED, "max_tokens": 64, "mode": "on"}
    with cluster.client() as client:
        undisturbed = list(client.generate(PROMPTS[0], **options).token_ids)

    def forget() -> None:
        for deployment in cluster.workers():
            for _ in range(6):  # more calls than replicas: every one is reached
                cluster.handle(deployment).forget_sessions.remote().result(timeout_s=30)

    assert _with_a_fault(cluster, forget, **options) == undisturbed


def test_a_router_that_dies_ends_the_stream_as_unavailable_and_its_leases_end_by_themselves(cluster: Cluster) -> None:
    before = set(replicas("Router"))
    with pytest.raises(Unavailable):
        _with_a_fault(cluster, lambda: cluster.kill("Router"), max_tokens=1000, ignore_eos=True)
    until(lambda: replicas("Router") and not set(replicas("Router")) & before, "a new router")
    cluster.settle()
    with cluster.client() as client:
        assert client.generate(PROMPTS[0], max_tokens=4).usage.emitted_tokens == 4


def test_a_client_that_goes_away_leaves_nothing_behind(cluster: Cluster) -> None:
    with cluster.client() as client:
        stream = client.stream(PROMPTS[0], max_tokens=1000, ignore_eos=True)
        for event in stream:
            if isinstance(event, Chunk):
                break
        stream.close()
    cluster.settle(timeout_s=20)


def test_a_deadline_ends_the_request_and_frees_everything(cluster: Cluster) -> None:
    from specserve.errors import DeadlineExceeded

    with cluster.client() as client, pytest.raises(DeadlineExceeded, match="timeout_ms ran out"):
        client.generate(PROMPTS[0], max_tokens=1000, timeout_s=0.3, ignore_eos=True)
    cluster.settle(timeout_s=20)
