"""Infill messages: what goes in comes out."""

import pytest

from specserve.errors import InvalidRequest
from specserve.transport import wire
from specserve.transport.client import infill_request
from specserve.transport.convert_infill import (
    decode_infill_event,
    decode_infill_response,
    encode_infill_event,
    encode_infill_response,
    infill_message_of,
    parse_infill,
    parse_stream_infill,
)
from specserve.types import (
    Fill,
    Filled,
    FilledSegment,
    FilledToken,
    Gap,
    InfillChunk,
    InfillFinished,
    InfillSpec,
    InfillStarted,
    InfillUsage,
    Sampling,
)
from specserve.v1 import generation_pb2 as pb

REQUEST = infill_request(
    ["def f(", Gap(3), [4, 5], Gap(9, exact=False)],
    drafter="ngram", max_draft_tokens=7, timeout_s=2.5, temperature=0.5, top_k=3, top_p=0.75, seed=11,
)  # fmt: skip
SEGMENTS = (FilledSegment(0, False, "a", (1,)), FilledSegment(1, True, "bc", (2, 3)))
FINISHED = InfillFinished(SEGMENTS, InfillUsage(1, 2, 2, 3, 1))


def test_a_request_survives_the_wire():
    assert parse_infill(infill_message_of(REQUEST).SerializeToString(), "") == REQUEST
    stream = pb.StreamInfillRequest(infill=infill_message_of(REQUEST))
    assert parse_stream_infill(stream.SerializeToString(), "") == REQUEST


def test_unset_fields_take_the_defaults_and_a_seed_is_drawn():
    message = pb.InfillRequest(segments=[pb.InfillSegment(gap=pb.Gap(tokens=2))])
    request = parse_infill(message.SerializeToString(), "id")
    assert (request.drafter, request.draft_tokens, request.sampling.temperature) == ("self", 5, 1.0)
    assert request.sampling.seed != parse_infill(message.SerializeToString(), "id").sampling.seed


@pytest.mark.parametrize(
    ("segment", "message"),
    [
        (pb.InfillSegment(), r"segments\[0\] must be set: text, token_ids or gap"),
        (pb.InfillSegment(gap=pb.Gap()), r"segments\[0\].gap must have a size"),
    ],
)
def test_an_empty_segment_is_refused_by_its_index(segment, message):
    with pytest.raises(InvalidRequest, match=message):
        parse_infill(pb.InfillRequest(segments=[segment]).SerializeToString(), "")


def test_events_and_the_whole_answer_survive_the_wire():
    started, chunk = (
        InfillStarted("id", 1),
        InfillChunk((FilledToken(1, 0, 2), FilledToken(1, 1, 4, True)), SEGMENTS[1:]),
    )
    assert decode_infill_event(encode_infill_event(started, 5)) == started
    assert decode_infill_event(encode_infill_event(chunk, 5)) == chunk
    assert decode_infill_event(encode_infill_event(FINISHED, 5)) == InfillFinished((), FINISHED.usage)
    assert decode_infill_response(encode_infill_response([started, chunk, FINISHED], 5)) == FINISHED


def test_commands_and_replies_of_fillings_survive_the_data_plane():
    sampling = Sampling(temperature=0.5, top_p=0.75, top_k=3, seed=2**63 - 1)
    spec = InfillSpec(((1, 2), Gap(3), (4,), Gap(2, exact=False)), sampling, "ngram", 7)
    commands = [Fill(1, 0, (5,), spec), Fill(2, 4, ())]
    assert wire.decode_commands(wire.encode_commands(commands)) == commands
    replies = [Filled(1, 4, (5, 6), 2, 5, 1, 0.25, 3)]
    assert wire.decode_replies(wire.encode_replies(replies)) == replies
