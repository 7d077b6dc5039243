"""Requests and events pass the public API unchanged."""

import pytest

from specserve.errors import InvalidRequest, Overloaded
from specserve.transport import convert
from specserve.transport.client import request
from specserve.types import (
    Chunk,
    Constraint,
    DrafterUsage,
    EmittedToken,
    Finished,
    FinishReason,
    GenerationRequest,
    Origin,
    Round,
    Sampling,
    Speculation,
    SpeculationMode,
    Started,
    TokenLogprobs,
    Usage,
)
from specserve.v1 import generation_pb2 as pb

FULL = GenerationRequest(
    (1, 2, 3),
    Sampling(
        max_tokens=7,
        temperature=0.5,
        top_p=0.75,
        top_k=40,
        min_p=0.125,
        seed=2**62 + 1,
        stop=("\n\n", "#"),
        stop_token_ids=(5, 6),
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        repetition_penalty=1.25,
        logit_bias={9: -2.0},
        logprobs=0,
        ignore_eos=True,
    ),
    Speculation(SpeculationMode.ON, ("ngram", "ar"), 0, "coupled", 4, 32, "to copy, é", "tenant", True),
    1.5,
    "r1",
    Constraint(json_schema='{"type": "integer"}'),
)
CONSTRAINTS = [Constraint(regex="a+"), Constraint(choice=("a", "é")), Constraint(choice=()), Constraint(regex="")]


@pytest.mark.parametrize(
    "made",
    [
        FULL,
        GenerationRequest("héllo", Sampling(seed=0), request_id="r2"),
        *(GenerationRequest("x", Sampling(seed=0), constraint=constraint) for constraint in CONSTRAINTS),
    ],
)
def test_a_request_arrives_as_it_was_sent(made: GenerationRequest) -> None:
    message = convert.message_of(made)
    assert convert.parse_generate(message.SerializeToString(), made.request_id) == made
    wrapped = pb.StreamGenerateRequest(generate=message).SerializeToString()
    assert convert.parse_stream_generate(wrapped, made.request_id) == made


def test_a_constraint_of_no_kind_arrives_as_one_and_two_kinds_never_leave() -> None:
    """A oneof would keep the last kind and say nothing."""
    message = pb.GenerateRequest(text="x", constraint=pb.OutputConstraint())
    assert convert.parse_generate(message.SerializeToString(), "r").constraint == Constraint()
    for wish in (Constraint(), Constraint(regex="a", choice=("a",))):
        with pytest.raises(InvalidRequest, match="constraint must be exactly one of json_schema, regex, choice"):
            convert.message_of(GenerationRequest("x", constraint=wish))


def test_a_constraint_is_given_by_its_kind() -> None:
    assert request("x", json_schema={"type": "null"}).constraint == Constraint(json_schema='{"type": "null"}')
    assert request("x", json_schema="true").constraint == Constraint(json_schema="true")
    assert request("x", regex="a").constraint == Constraint(regex="a")
    assert request("x", choice=["a", "b"]).constraint == Constraint(choice=("a", "b"))
    assert request("x").constraint is None


def test_two_requests_without_a_seed_get_two_seeds() -> None:
    raw = pb.GenerateRequest(text="x").SerializeToString()
    assert convert.parse_generate(raw, "a").sampling.seed != convert.parse_generate(raw, "a").sampling.seed
    assert request("x").sampling.seed != request("x").sampling.seed


@pytest.mark.parametrize("raw", [b"\x0a\x02\xff\xfe", b"garbage"], ids=["invalid UTF-8", "no protobuf"])
def test_bytes_that_are_no_request_are_the_callers_fault(raw: bytes) -> None:
    with pytest.raises(InvalidRequest, match="UTF-8"):
        convert.parse_generate(raw, "r")


def test_a_request_without_a_prompt_names_the_field() -> None:
    with pytest.raises(InvalidRequest, match=r"^prompt must be set"):
        convert.parse_generate(b"", "r")


EVENTS = [
    Started("r1", 3),
    Chunk(
        (
            EmittedToken(4, Origin.ACCEPTED, "ngram", TokenLogprobs(-0.5, -1.0, ((4, -0.5, -1.0),))),
            EmittedToken(5, Origin.RECOVERED),
        ),
        "ab",
    ),
    Chunk((EmittedToken(6, Origin.BONUS, text_end=1),), "c", Round(2.0, 1.0, 0.5, 3, 2, 1)),
    Finished(FinishReason.STOP, Usage(3, 3, 2, {"ngram": DrafterUsage(5, 1)})),
]


def test_events_survive_the_api() -> None:
    assert [convert.decode_event(convert.encode_event(e, 7)) for e in EVENTS] == EVENTS


def test_the_whole_answer_is_the_sum_of_its_events() -> None:
    response = convert.encode_response(EVENTS, seed=7)
    assert (response.text, list(response.token_ids), response.seed) == ("abc", [4, 5, 6], 7)
    assert response.finish_reason == pb.FINISH_REASON_STOP
    assert (response.usage.rounds, response.usage.drafted_tokens, response.usage.accepted_tokens) == (2, 5, 1)
    assert len(response.logprobs) == 1


def test_an_invalid_request_reads_the_same_at_the_client() -> None:
    import grpc

    from specserve.transport.status import code_of, error_of

    class Call(grpc.RpcError):
        def __init__(self, error: Exception) -> None:
            self._error = error

        def code(self) -> grpc.StatusCode:
            return code_of(self._error)

        def details(self) -> str:
            return str(self._error)

    sent = InvalidRequest("sampling.temperature", "must be between 0 and 100", -1.0)
    got = error_of(Call(sent))
    assert isinstance(got, InvalidRequest)
    assert str(got) == str(sent)
    assert got.field == "sampling.temperature"
    assert isinstance(error_of(Call(Overloaded("full", 2.0))), Overloaded)
