"""The verifier as a worker: sessions come, wait, fail alone and go, and nothing is left behind."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from tinymodels import VOCAB, plain, text

from specserve.engine import Engine, Verifier
from specserve.errors import VerifyError
from specserve.types import (
    Close,
    Command,
    Draft,
    Failed,
    Propose,
    Reply,
    Sampling,
    SessionLost,
    SessionSpec,
    TokenIds,
    Verdict,
    Verify,
)
from specserve.verify import Case, Outcome, decide

NAN_TOKEN = 99


class Clock:
    """Time that only the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make_verifier(make_engine: Callable[..., Engine], clock: Clock) -> Iterator[Callable[..., Verifier]]:
    """Verifiers whose sessions are closed at the end; the engine fixture then finds every slot free."""
    made: list[Verifier] = []

    def make(slots: int = 600, max_nodes: int = 8, **options: Any) -> Verifier:
        engine = make_engine(slots=slots, max_nodes=max_nodes)
        made.append(Verifier(engine, **{"prefill_chunk": 16, "round_tokens": 8, "clock": clock, **options}))
        return made[-1]

    yield make
    for verifier in made:
        verifier.check_integrity()
        for session in list(verifier._seats):
            verifier.submit(Close(session))
        assert not verifier.busy
        assert verifier.stats()["queued"] == verifier.stats()["waiting"] == 0


def begin(session: int, prompt: Sequence[int], max_len: int = 100, **more: Any) -> Verify:
    draft = more.pop("draft", Draft())
    return Verify(session, 0, tuple(prompt), draft, SessionSpec(Sampling(**more), len(prompt), max_len))


def drain(verifier: Verifier, *commands: Command) -> list[Reply]:
    """Submit, then step until nothing is left to do."""
    replies = [reply for command in commands for reply in verifier.submit(command)]
    while verifier.busy:
        replies += verifier.step()
        verifier.check_integrity()
    return replies


def greedy(verifier: Verifier, tokens: list[int], count: int) -> TokenIds:
    """The slow oracle: the plain model, once per token."""
    got: list[int] = []
    for _ in range(count):
        got.append(int(plain(verifier.engine, [*tokens, *got])[-1].argmax()))
    return tuple(got)


def test_a_verdict_speaks_of_the_length_verified_and_the_worker_then_holds_what_was_accepted(make_verifier):
    verifier, prompt = make_verifier(), text(10)
    want = greedy(verifier, prompt, 6)
    draft = Draft((50, want[0], want[1], 51), (-1, -1, 1, 2))
    [verdict] = drain(verifier, begin(1, prompt, draft=draft))
    assert (verdict.at, verdict.accepted, verdict.token, verdict.batch) == (10, (1, 2), want[2], 1)
    assert verdict.forward_s > 0
    [verdict] = drain(verifier, Verify(1, 13, (), Draft.chain(want[3:5])))
    assert (verdict.at, verdict.accepted, verdict.token) == (13, (0, 1), want[5])


def test_rounds_of_all_sessions_that_wait_run_as_one_batch(make_verifier):
    verifier = make_verifier()
    replies = drain(verifier, *(begin(i, text(3 + i, i)) for i in range(4)))
    assert [reply.batch for reply in replies] == [4] * 4
    assert [reply.token for reply in replies] == [greedy(verifier, text(3 + i, i), 1)[0] for i in range(4)]
    assert verifier.stats()["forwards"] == 1


def test_a_step_is_bounded_in_tokens_padding_included(make_verifier):
    verifier = make_verifier(max_batch_tokens=12)
    replies = drain(verifier, *(begin(i, text(4, i)) for i in range(5)))
    assert [reply.batch for reply in replies] == [3, 3, 3, 2, 2]


def test_rounds_go_on_while_a_long_prompt_is_taken_in(make_verifier):
    """Neither starves: prompt pieces and rounds alternate."""
    verifier, long = make_verifier(prefill_chunk=8), text(60, 1)
    [first] = drain(verifier, begin(1, text(4)))
    verifier.submit(begin(2, long))
    base, steps, order = 5, 0, []
    verifier.submit(Verify(1, base, ()))
    while 2 not in order:
        for reply in verifier.step():
            order.append(reply.session)
            if reply.session == 1:
                base += 1
                verifier.submit(Verify(1, base, ()))
            else:
                assert reply.token == greedy(verifier, long, 1)[0]
        steps += 1
    assert steps in (14, 15), "8 pieces of 60 tokens, a round between each two"
    assert order.count(1) == 7
    assert first.token == greedy(verifier, text(4), 1)[0]


def test_a_wrong_base_length_is_answered_with_what_is_held_and_a_resend_starts_over(make_verifier):
    verifier, prompt = make_verifier(), text(6)
    assert drain(verifier, Verify(1, 6, ())) == [SessionLost(1, 0)]
    [verdict] = drain(verifier, begin(1, prompt))
    assert drain(verifier, Verify(1, 6, ())) == [SessionLost(1, 7)]
    [again] = drain(verifier, begin(1, [*prompt, verdict.token]))
    assert (again.at, again.token) == (7, greedy(verifier, prompt, 2)[1])


def test_a_second_command_before_the_verdict_is_refused_and_the_first_is_answered(make_verifier):
    verifier = make_verifier()
    verifier.submit(begin(1, text(6)))
    assert verifier.submit(Verify(1, 0, ())) == [SessionLost(1, 6)]
    assert len(drain(verifier)) == 1


def test_a_full_pool_queues_in_order_and_lets_in_when_slots_are_freed(make_verifier):
    """A small session does not overtake those that wait for more."""
    verifier = make_verifier(slots=130)
    drain(verifier, begin(1, text(5), max_len=100))
    for session, max_len in ((2, 50), (3, 50), (4, 10)):
        assert not verifier.submit(begin(session, text(5, session), max_len=max_len))
    assert verifier.engine.room(10)
    assert not verifier.busy
    assert verifier.stats()["queued"] == 3
    verifier.submit(Close(1))
    assert [reply.session for reply in drain(verifier)] == [2, 3]
    assert [reply.session for reply in drain(verifier, Close(2))] == [4]


def test_a_session_that_waits_too_long_for_slots_is_refused_alone(make_verifier, clock):
    verifier = make_verifier(slots=120, queue_timeout_s=10)
    drain(verifier, begin(1, text(5)))
    verifier.submit(begin(2, text(5)))
    clock.now += 6
    verifier.submit(begin(3, text(5)))
    clock.now += 5
    assert verifier.busy
    [failed] = verifier.step()
    assert (failed.session, failed.kind) == (2, "Overloaded")
    assert "no room for 100 tokens came free within 10 s" in failed.message
    assert not verifier.busy
    [verdict] = drain(verifier, Close(1))
    assert verdict.session == 3


def test_without_a_queue_a_full_pool_refuses_at_once(make_verifier):
    verifier = make_verifier(slots=120, queue_timeout_s=0)
    drain(verifier, begin(1, text(5)))
    [failed] = verifier.submit(begin(2, text(5)))
    assert (failed.session, failed.kind) == (2, "Overloaded")


@pytest.mark.parametrize("when", ["queued", "waiting", "mid-prompt", "between rounds", "never opened"])
def test_close_frees_everything_at_any_point(when: str, make_verifier):
    verifier = make_verifier(slots=120)
    if when == "queued":
        drain(verifier, begin(2, text(5)))
    if when != "never opened":
        verifier.submit(begin(1, text(60)))
    if when == "mid-prompt":
        verifier.step()
        assert 0 < verifier.engine.held(1) < 60
    if when == "between rounds":
        drain(verifier)
    assert not verifier.submit(Close(1))
    verifier.submit(Close(2))
    assert not verifier.busy
    assert verifier.stats()["slots_used"] == verifier.stats()["sessions"] == verifier.stats()["queued"] == 0
    assert verifier.stats()["slots_free"] == 120


def test_logits_that_are_no_numbers_fail_their_session_only(make_verifier):
    verifier = make_verifier()
    with torch.inference_mode():
        verifier.engine._model.get_input_embeddings().weight[NAN_TOKEN] = float("nan")
    replies = drain(verifier, begin(1, text(6)), begin(2, [5, NAN_TOKEN, 6]), begin(3, text(9)))
    by_session = {reply.session: reply for reply in replies}
    assert isinstance(by_session[2], Failed)
    assert by_session[2].kind == "EngineError"
    assert "session 2: logits at position 3" in by_session[2].message
    for session, length in ((1, 6), (3, 9)):
        assert by_session[session].token == greedy(verifier, text(length), 1)[0]
    assert drain(verifier, Verify(2, 4, ())) == [SessionLost(2, 0)]
    assert verifier.engine.sessions == {1, 3}


@pytest.mark.parametrize(
    "draft",
    [
        Draft((5, 6), (-1, 1)),
        Draft((5, 6), (-2, 0)),
        Draft((5,), (-1, 0)),
        Draft((VOCAB,), (-1,)),
        Draft((-1,), (-1,)),
        Draft.chain(tuple(text(9))),
    ],
    ids=["own parent", "no such parent", "parents missing", "id too large", "id negative", "too many nodes"],
)
def test_a_bad_draft_costs_its_speed_and_nothing_else(draft: Draft, make_verifier):
    verifier = make_verifier()
    [verdict] = drain(verifier, begin(1, text(6), draft=draft))
    assert (verdict.accepted, verdict.token) == ((), greedy(verifier, text(6), 1)[0])


def test_a_draft_that_the_rule_rejects_is_left_out_and_its_neighbours_keep_theirs(
    make_verifier, monkeypatch: pytest.MonkeyPatch
):
    """A rule may need laws that a drafter did not send."""

    def picky(logits: torch.Tensor, cases: Sequence[Case]) -> list[Outcome]:
        if any(7 in case.draft.tokens for case in cases):
            raise VerifyError("node 0 needs its law")
        return decide(logits, cases)

    monkeypatch.setattr("specserve.engine.verifier.decide", picky)
    verifier = make_verifier()
    want = greedy(verifier, text(6), 2)
    fine, bad = drain(
        verifier, begin(1, text(6), draft=Draft.chain(want[:1])), begin(2, text(6), draft=Draft.chain((7,)))
    )
    assert (fine.accepted, fine.token) == ((0,), want[1])
    assert (bad.accepted, bad.token) == ((), want[0])


def test_a_draft_beyond_the_last_position_of_the_model_is_dropped(make_verifier):
    verifier = make_verifier(slots=600)
    [verdict] = drain(verifier, begin(1, text(254), max_len=256, draft=Draft.chain((5, 6, 7))))
    assert (verdict.at, verdict.accepted) == (254, ())


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (begin(1, [5, VOCAB]), f"token_ids must be between 0 and {VOCAB - 1}; got {VOCAB}"),
        (begin(1, []), "tokens must be between 1 and max_len 100 tokens; got 0"),
        (begin(1, text(20), max_len=10), "tokens must be between 1 and max_len 10 tokens; got 20"),
        (begin(1, text(20), max_len=300), "max_len must be between 1 and 256"),
        (Verify(1, 0, (5,), Draft(), SessionSpec(Sampling(), 1, 10, "no-rule")), "speculation.rule must be one of"),
        (Propose(1, 0, (5,), 4), "command must be Verify or Close at a verifier"),
    ],
)
def test_a_command_that_cannot_be_done_names_field_bound_and_value(command: Command, message: str, make_verifier):
    verifier = make_verifier()
    [failed] = drain(verifier, command)
    assert (failed.session, failed.kind) == (1, "InvalidRequest")
    assert message in failed.message
    assert verifier.engine.sessions == set()


@pytest.mark.parametrize("seed", range(3))
def test_same_seed_same_text_whatever_is_drafted_and_batched(seed: int, make_verifier):
    """Temperature 1 with a penalty: alone and undrafted, against batches with right and wrong drafts."""
    rng = random.Random(seed)
    options = {"temperature": 1.0, "top_p": 0.9, "presence_penalty": 0.5, "seed": seed}
    prompts = [text(4 + 5 * i, i) for i in range(3)]
    alone = [decode(make_verifier(), [prompt], options, lambda coming: Draft())[0] for prompt in prompts]

    def drafts(coming: Sequence[int]) -> Draft:
        right = list(coming[: rng.randint(0, 4)])
        return Draft.chain((*right, *(rng.randrange(VOCAB) for _ in range(rng.randint(0, 3)))))

    assert decode(make_verifier(), prompts, options, drafts, alone) == alone


def decode(
    verifier: Verifier,
    prompts: list[list[int]],
    options: dict[str, Any],
    drafts: Callable[[Sequence[int]], Draft],
    coming: list[list[int]] | None = None,
) -> list[list[int]]:
    """12 tokens after each prompt, all sessions at once."""
    got: list[list[int]] = [[] for _ in prompts]
    sent = [drafts(coming[i] if coming else ()) for i in range(len(prompts))]
    for i, prompt in enumerate(prompts):
        verifier.submit(begin(i, prompt, draft=sent[i], **options))
    while verifier.busy:
        for reply in verifier.step():
            assert isinstance(reply, Verdict)
            i = reply.session
            got[i] += [*(sent[i].tokens[node] for node in reply.accepted), reply.token]
            if len(got[i]) < 12:
                sent[i] = drafts(coming[i][len(got[i]) :] if coming else ())
                verifier.submit(Verify(i, len(prompts[i]) + len(got[i]), (), sent[i]))
            else:
                verifier.submit(Close(i))
    return [tokens[:12] for tokens in got]


@pytest.mark.parametrize("seed", range(3))
def test_any_sequence_of_commands_leaves_the_books_balanced(seed: int, make_verifier, clock):
    """Random opens, rounds, duplicates, closes, waits; every open session is answered or still waiting."""
    rng = random.Random(seed)
    verifier = make_verifier(slots=220, queue_timeout_s=5)
    idle: dict[int, int] = {}
    for number in range(120):
        match rng.choice(["begin", "round", "round", "close", "stray", "step", "step", "wait"]):
            case "begin":
                command = begin(number, text(rng.randint(1, 50), number), max_len=rng.randint(50, 100))
                assert not verifier.submit(command)
            case "round" if idle:
                session = rng.choice(list(idle))
                draft = Draft.chain(tuple(text(rng.randint(0, 8), number)))
                replies = verifier.submit(Verify(session, idle.pop(session), (), draft))
                assert all(reply.kind == "InvalidRequest" for reply in replies), "only for text beyond max_len"
            case "close" if verifier._seats:
                session = rng.choice(list(verifier._seats))
                idle.pop(session, None)
                verifier.submit(Close(session))
            case "stray":
                assert isinstance(verifier.submit(Verify(rng.randrange(200), 777, ()))[0], SessionLost)
            case "step":
                for reply in verifier.step():
                    if isinstance(reply, Verdict):
                        idle[reply.session] = reply.at + len(reply.accepted) + 1
                    else:
                        assert reply.kind == "Overloaded"
            case "wait":
                clock.now += rng.random() * 2
        verifier.check_integrity()
