"""A real Ray, real replicas, real gRPC. What a fixture starts, it sees end."""

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from live import MAIN, Cluster, no_ray_process, serve_config, until

from deployments import launch
from specserve.config import model_dir


@pytest.fixture(scope="session")
def free_ports() -> Callable[[], int]:
    def free() -> int:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            return int(s.getsockname()[1])

    return free


@pytest.fixture(scope="module")
def deploy(free_ports: Callable[[], int]) -> Iterator[Callable[[dict[str, Any]], Cluster]]:
    """Deploy args; at most one app at a time. Ends by asserting that no replica and no Ray process is left."""
    with ExitStack() as stack:

        def start(args: dict[str, Any]) -> Cluster:
            config = serve_config(args, free_ports(), free_ports())
            server = stack.enter_context(launch.up(config))
            return Cluster(server.grpc, args)

        yield start
    until(no_ray_process, "every Ray process gone")


@pytest.fixture(scope="module")
def cluster(deploy: Callable[[dict[str, Any]], Cluster]) -> Cluster:
    """Two verifiers, an n-gram drafter and a small model, fp32 on CPU."""
    return deploy(MAIN)


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every test of the cluster: no lease, session or slot is left."""
    yield
    if "cluster" in request.fixturenames:
        request.getfixturevalue("cluster").settle()


@pytest.fixture(scope="session")
def reference() -> Callable[[str, int], list[int]]:
    """Greedy token ids of `transformers`' own generate, fp32, on the embedded target."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = model_dir("zoo:target")
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)

    def generate(prompt: str, max_tokens: int) -> list[int]:
        inputs = tokenizer(prompt, return_tensors="pt")
        with torch.inference_mode():
            out = model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False)
        ids: list[int] = out[0, inputs["input_ids"].shape[1] :].tolist()
        return ids

    return generate
