"""Gaps filled on a real Ray, over real gRPC, while the replica that fills them is killed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from live import Cluster, replicas, until

from specserve.config import model_dir
from specserve.errors import InvalidRequest
from specserve.transport.client import Gap
from specserve.types import InfillChunk, InfillStarted

SEGMENTS = ["def add(a, b):\n", Gap(400), "    return total\n", Gap(60, exact=False), "\nprint(add(1, 2))\n"]


@pytest.fixture(scope="module")
def filler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with the embedded tokenizer: what it writes does not matter here, that it is the same does. Deep
    enough that a request takes a second or two."""
    import shutil

    import torch

    from specserve.train.anysubset import XlnetShape

    path = tmp_path_factory.mktemp("filler")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        XlnetShape(hidden=64, layers=12, ffn=64, heads=2).model().save_pretrained(path)
    shutil.copyfile(model_dir("zoo:target") / "tokenizer.json", path / "tokenizer.json")
    return path


@pytest.fixture(scope="module")
def gaps(deploy: Callable[[dict[str, Any]], Cluster], filler: Path) -> Cluster:
    placement = {"num_cpus": 0.25}
    return deploy(
        {
            "target": {"model": "zoo:target", "dtype": "float32", "threads": 1, "slots": 4096, "placement": placement},
            "drafters": {},
            "infill": {"model": str(filler), "replicas": {"min": 2, "max": 2}, "placement": placement},
            "router": {"placement": placement, "max_sessions": 8},
            "data_plane": {"secret": "of-the-tests"},
        }
    )


@pytest.mark.parametrize("drafter", ["self", "ngram"])
def test_a_replica_killed_mid_request_changes_nothing(gaps: Cluster, drafter: str) -> None:
    with gaps.client() as client:
        options = {"drafter": drafter, "seed": 5}
        undisturbed = client.infill(SEGMENTS, **options)
        assert [segment.filled for segment in undisturbed.segments] == [False, True, False, True, False]
        assert undisturbed.segments[0].text == SEGMENTS[0]
        assert undisturbed.usage.model_passes <= undisturbed.usage.written_tokens
        told: dict[int, tuple[int, ...]] = {}
        chunks = 0
        for event in client.stream_infill(SEGMENTS, **options):
            if isinstance(event, InfillStarted):
                assert event.given_tokens == undisturbed.usage.given_tokens
            if isinstance(event, InfillChunk):
                chunks += 1
                told.update((segment.index, segment.token_ids) for segment in event.segments)
                if chunks == 3:
                    (busy,) = [pid for pid, state in gaps.where("Infill").items() if state["sessions"]]
                    gaps.kill("Infill", busy)
        assert told == {s.index: s.token_ids for s in undisturbed.segments if s.filled}
    until(lambda: len(replicas("Infill")) == 2, "the second replica back")


def test_the_server_says_what_fills_gaps_and_refuses_what_it_cannot(gaps: Cluster) -> None:
    with gaps.client() as client:
        info = client.info().infill
        assert (info.context_length, info.open_gaps) == (512, True)
        with pytest.raises(InvalidRequest, match=r"segments\[1\].gap.tokens must be 1 to 512; got 0"):
            client.infill(["def f():", Gap(0)])
        with pytest.raises(InvalidRequest, match=r"segments\[1\] must end within 512 tokens"):
            client.infill(["def f():", Gap(512)])
