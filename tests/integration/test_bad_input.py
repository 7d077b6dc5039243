"""Bad input is INVALID_ARGUMENT naming field, bound and value; nothing is started and the server stays healthy."""

import grpc
import pytest
from live import PROMPTS, Cluster

from specserve.errors import InvalidRequest

BAD = [
    ({"prompt": ""}, "prompt", "''"),
    ({"prompt": ()}, "prompt", ""),
    ({"prompt": (1, 2, 4096)}, "prompt.token_ids", "4096"),
    ({"prompt": "x" * 2_000_000}, "prompt.text", "2000000"),
    ({"prompt": "x" * 10_000_000}, "request", "100"),
    ({"max_tokens": 0}, "sampling.max_tokens", "0"),
    ({"max_tokens": 100_000}, "sampling.max_tokens", "100000"),
    ({"temperature": -1.0}, "sampling.temperature", "-1"),
    ({"temperature": float("nan")}, "sampling.temperature", "nan"),
    ({"top_p": 1.5}, "sampling.top_p", "1.5"),
    ({"min_p": -0.5}, "sampling.min_p", "-0.5"),
    ({"repetition_penalty": 0.0}, "sampling.repetition_penalty", "0"),
    ({"logit_bias": {5000: 1.0}}, "sampling.logit_bias", "5000"),
    ({"stop": [""]}, "sampling.stop", ""),
    ({"logprobs": 100}, "sampling.logprobs", "100"),
    ({"drafters": ["nobody"]}, "speculation.drafters", "nobody"),
    ({"rule": "coin-flip"}, "speculation.rule", "coin-flip"),
    ({"max_draft_tokens": 1000}, "speculation.max_draft_tokens", "1000"),
]


@pytest.mark.parametrize(("bad", "field", "value"), BAD, ids=[f"{f}-{v}"[:40] for _, f, v in BAD])
def test_bad_input_names_field_bound_and_value(cluster: Cluster, bad: dict, field: str, value: str) -> None:
    options = {"prompt": PROMPTS[0], **bad}
    with cluster.client() as client:
        with pytest.raises(InvalidRequest) as caught:
            client.generate(**options)
        assert caught.value.field.startswith(field)
        assert value in str(caught.value)
        assert client.generate(PROMPTS[0], max_tokens=2).usage.emitted_tokens == 2


def test_a_prompt_that_is_not_utf8_is_the_callers_fault(cluster: Cluster) -> None:
    with grpc.insecure_channel(cluster.address) as channel:
        call = channel.unary_unary("/specserve.v1.GenerationService/Generate")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"\x0a\x03\xff\xfe\xfd")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "UTF-8" in caught.value.details()


def test_health_and_reflection_answer(cluster: Cluster) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

    with grpc.insecure_channel(cluster.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
        services = ProtoReflectionDescriptorDatabase(channel).get_services()
    assert "specserve.v1.GenerationService" in services
    assert "grpc.health.v1.Health" in services


def test_server_info_says_what_may_be_asked_for(cluster: Cluster) -> None:
    with cluster.client() as client:
        info = client.info()
    assert [d.name for d in info.drafters] == ["ngram", "ar"]
    assert "coupled" in info.rules
    assert info.default_rule == "coupled"
    assert info.vocab_size == 4096


def test_the_data_plane_refuses_who_has_no_secret(cluster: Cluster) -> None:
    from specserve.worker.v1 import worker_pb2, worker_pb2_grpc

    endpoint = next(iter(cluster.where("Verifier").values()))["endpoint"]
    with grpc.insecure_channel(endpoint) as channel:
        call = worker_pb2_grpc.WorkerServiceStub(channel).Work(
            iter([worker_pb2.WorkRequest()]), metadata=(("specserve-secret", "guess"),)
        )
        with pytest.raises(grpc.RpcError) as caught:
            next(call)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("deployment", ["Router", "Drafter-ngram"])
def test_replicas_without_a_model_stay_small(cluster: Cluster, deployment: str) -> None:
    from live import replicas

    for process in replicas(deployment).values():
        assert process.memory_info().rss < 300 << 20
        assert not any("libtorch" in m.path for m in process.memory_maps())
