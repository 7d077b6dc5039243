"""What goes over the data plane comes back as it was."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from specserve.transport import wire
from specserve.types import (
    Close,
    Constraint,
    Draft,
    DraftContext,
    Failed,
    Features,
    Proposal,
    Propose,
    Sampling,
    SessionLost,
    SessionSpec,
    SparseLaw,
    TokenLogprobs,
    Verdict,
    Verify,
)
from specserve.worker.v1 import worker_pb2 as pb

ids = st.integers(0, 2**32 - 1)
tokens = st.lists(ids, max_size=6).map(tuple)
sessions = st.integers(0, 2**64 - 1)
floats = st.floats(0, 1, width=32)


@st.composite
def drafts(draw: st.DrawFn, drafter: str = "") -> Draft:
    made = draw(tokens)
    parents = tuple(draw(st.integers(-1, i - 1)) for i in range(len(made)))
    laws = None
    if made and draw(st.booleans()):
        laws = tuple(SparseLaw((draw(ids),), (draw(floats),)) for _ in made)
    chains = tuple(draw(st.lists(st.lists(st.integers(0, 9), max_size=3).map(tuple), max_size=2))) if made else ()
    return Draft(made, parents, (drafter,) * len(made), laws, chains)


features = st.none() | st.builds(Features, ids, st.just((-1, 2)), st.binary(max_size=8))
specs = st.builds(
    SessionSpec,
    sampling=st.builds(
        Sampling,
        max_tokens=st.just(Sampling().max_tokens),  # the router's own: not on the wire
        temperature=floats,
        top_p=floats,
        top_k=st.integers(0, 50),
        min_p=floats,
        seed=st.integers(0, 2**63 - 1),
        presence_penalty=floats,
        frequency_penalty=floats,
        repetition_penalty=floats,
        logit_bias=st.dictionaries(ids, floats, max_size=3),
        logprobs=st.none() | st.integers(0, 20),
    ),
    prompt_len=st.integers(1, 1000),
    max_len=st.integers(1, 1000),
    rule=st.sampled_from(["coupled", "kseq"]),
    branches=st.integers(0, 16),
    max_draft_nodes=st.integers(0, 256),
    features=st.sampled_from([(), (-1,)]),
)
constraints = st.one_of(
    st.none(),
    st.builds(Constraint, json_schema=st.text()),
    st.builds(Constraint, regex=st.text()),
    st.builds(Constraint, choice=st.lists(st.text(), min_size=1, max_size=3).map(tuple)),
)
held = st.builds(lambda spec, constraint: replace(spec, constraint=constraint), specs, constraints)


verifies = st.builds(Verify, sessions, st.integers(0, 9), tokens, drafts(), st.none() | held, st.integers(0, 9))


@given(st.lists(verifies, max_size=4))
def test_verify_commands_survive_the_wire(commands: list[Verify]) -> None:
    blob = wire.encode_commands(commands).SerializeToString()
    assert wire.decode_commands(pb.WorkRequest.FromString(blob)) == commands


contexts = st.none() | st.builds(DraftContext, tokens, st.text(max_size=9), st.booleans())
proposes = st.builds(
    Propose,
    sessions,
    st.integers(0, 9),
    tokens,
    st.integers(0, 64),
    st.none() | specs,
    st.integers(0, 256),
    floats,
    contexts,
    features,
)


@given(proposes, sessions)
def test_propose_and_close_survive_the_wire(propose: Propose, session: int) -> None:
    blob = wire.encode_commands([propose, Close(session)]).SerializeToString()
    assert wire.decode_commands(pb.WorkRequest.FromString(blob)) == [propose, Close(session)]


logprobs = st.builds(TokenLogprobs, floats, floats, st.lists(st.tuples(ids, floats, floats), max_size=3).map(tuple))
replies = st.one_of(
    st.builds(
        Verdict,
        *(sessions, ids, tokens, ids, st.lists(logprobs, max_size=3).map(tuple), floats, ids),
        draft=drafts("pool"),
        draft_s=floats,
        features=features,
    ),
    st.builds(
        Proposal, sessions, ids, drafts("pool"), floats, st.dictionaries(st.text(max_size=9), floats, max_size=3)
    ),
    st.builds(SessionLost, sessions, ids),
    st.builds(Failed, sessions, st.just("EngineError"), st.text()),
)


@given(replies)
def test_every_reply_survives_the_wire_and_drafts_are_credited_to_the_pool(reply: Verdict) -> None:
    blob = wire.encode_replies([reply]).SerializeToString()
    assert wire.decode_replies(pb.WorkResponse.FromString(blob), "pool") == [reply]


def test_drafters_are_not_told_the_grammar_they_need_not_follow() -> None:
    spec = SessionSpec(Sampling(seed=1), 1, 9, constraint=Constraint(regex="a"))
    [propose] = wire.decode_commands(wire.encode_commands([Propose(1, 0, (2,), 4, spec)]))
    assert isinstance(propose, Propose)
    assert propose.spec == replace(spec, constraint=None)


def test_a_chain_costs_no_parents_on_the_wire() -> None:
    message = wire.encode_commands([Verify(1, 0, (), Draft.chain((5, 6, 7)))])
    assert list(message.verify[0].draft.parents) == []
