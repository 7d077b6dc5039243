"""What verdicts carry for the next round: hidden states of the right token, drafts no deeper than may be emitted."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from tinymodels import VOCAB, text
from torch import Tensor

from specserve.engine import Engine, Verifier
from specserve.engine.ahead import Wish, packed, unpacked
from specserve.engine.hidden import read_unembedding, reading
from specserve.types import Close, Draft, Features, Sampling, SessionSpec, Verdict, Verify


class Notes:
    """A drafter that writes down what it was given, and drafts the chain 1, 2, ..."""

    most = 7

    def __init__(self) -> None:
        self.wishes: list[Wish] = []
        self.hidden: list[Tensor] = []
        self.open: set[int] = set()

    def draft(self, wishes: Sequence[Wish], hidden: Tensor) -> list[Draft]:
        self.wishes += wishes
        self.hidden += list(hidden)
        self.open |= {wish.session for wish in wishes}
        return [Draft.chain(tuple(range(1, wish.depth + 1))) for wish in wishes]

    def forget(self, session: int) -> None:
        self.open.discard(session)


def states(engine: Engine, tokens: Sequence[int]) -> Tensor:
    """Slow oracle: what the unembedding reads in a plain pass, [n, d]."""
    with torch.inference_mode(), reading(engine._model) as seen:
        engine._model(input_ids=torch.tensor([list(tokens)]), use_cache=False)
    return seen[0][0]


def run(verifier: Verifier, *commands: Verify) -> list[Verdict]:
    replies = [reply for command in commands for reply in verifier.submit(command)]
    while verifier.busy:
        replies += verifier.step()
    assert all(isinstance(reply, Verdict) for reply in replies)
    return sorted(replies, key=lambda reply: reply.session)


def spec(length: int, max_len: int = 90, features: tuple[int, ...] = (-1,)) -> SessionSpec:
    return SessionSpec(Sampling(), length, max_len, features=features)


@pytest.mark.parametrize("trace", [False, True])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_verdict_carries_the_state_that_its_token_was_drawn_from(name, trace, make_engine):
    """Session 0 drafts what is accepted, session 1 what is not."""
    engine, notes = make_engine(name, hidden=True, trace=trace), Notes()
    verifier = Verifier(engine, drafter=notes)
    texts = {0: text(9), 1: text(14, 3)}
    drafts = dict.fromkeys(texts, Draft())
    commands = [Verify(s, 0, tuple(t), spec=spec(len(t)), next_tokens=3) for s, t in texts.items()]
    accepted = 0
    for _ in range(4):
        for verdict in run(verifier, *commands):
            tokens, draft = texts[verdict.session], drafts[verdict.session]
            tokens += [*(draft.tokens[i] for i in verdict.accepted), verdict.token]
            accepted += len(verdict.accepted)
            want = states(engine, tokens)[-2]
            assert verdict.features is not None
            assert (verdict.features.first, verdict.features.layers) == (len(tokens) - 2, (-1,))
            got = unpacked(verdict.features.data, want.shape[0])[0]
            torch.testing.assert_close(got.float(), want, rtol=1e-2, atol=2e-2)
            assert verdict.draft == Draft.chain((1, 2, 3))
        for wish, hidden in zip(notes.wishes[-2:], notes.hidden[-2:], strict=True):
            assert wish.tokens == texts[wish.session]
            torch.testing.assert_close(hidden, states(engine, wish.tokens)[-2], rtol=1e-4, atol=1e-4)
        best = {s: int((states(engine, t) @ engine.unembedding().T)[-1].argmax()) for s, t in texts.items()}
        drafts = {s: Draft.chain(((best[s] + s) % VOCAB,)) for s in texts}
        commands = [Verify(s, len(t), (), drafts[s], next_tokens=3) for s, t in texts.items()]
    assert accepted == 3
    for session in texts:
        verifier.submit(Close(session))
    assert notes.open == set()
    assert verifier.stats()["feature_bytes"] == 8 * 2 * engine.unembedding().shape[1]


def test_a_draft_ahead_is_never_deeper_than_what_may_still_be_emitted(make_engine):
    engine, notes = make_engine("llama", hidden=True), Notes()
    verifier = Verifier(engine, drafter=notes)
    depths = []
    for session, max_len in enumerate((9 + 1, 9 + 2, 9 + 5, 60)):
        [verdict] = run(verifier, Verify(session, 0, tuple(text(9)), spec=spec(9, max_len, ()), next_tokens=7))
        depths.append(len(verdict.draft))
        assert verdict.features is None
        verifier.submit(Close(session))
    assert depths == [0, 0, 3, 7]


def test_a_drafter_that_breaks_costs_its_drafts_and_nothing_else(make_engine):
    class Broken(Notes):
        def draft(self, wishes: Sequence[Wish], hidden: Tensor) -> list[Draft]:
            raise RuntimeError("out of memory")

    engine = make_engine("llama", hidden=True)
    verifier, whole = Verifier(engine, drafter=Broken()), Verifier(engine)
    begin = Verify(1, 0, tuple(text(9)), spec=spec(9), next_tokens=3)
    [verdict] = run(verifier, begin)
    verifier.submit(Close(1))
    [want] = run(whole, begin)
    whole.submit(Close(1))
    assert verdict.draft == Draft()
    assert (verdict.token, verdict.features) == (want.token, want.features)


def test_nothing_is_added_where_nothing_is_asked_for_or_kept(make_engine):
    notes = Notes()
    for engine, drafter, asked in ((make_engine("llama", hidden=True), notes, 0), (make_engine("llama"), None, 5)):
        verifier = Verifier(engine, drafter=drafter)
        [verdict] = run(verifier, Verify(1, 0, tuple(text(9)), spec=spec(9, features=()), next_tokens=asked))
        assert (verdict.draft, verdict.features) == (Draft(), None)
        verifier.submit(Close(1))
    assert notes.wishes == []


def test_a_layer_that_is_not_kept_is_refused(make_engine):
    verifier = Verifier(make_engine("llama", hidden=True))
    [failed] = verifier.submit(Verify(1, 0, tuple(text(9)), spec=spec(9, features=(2,))))
    assert failed.message == "features must be -1, the last layer, or none; got (2,)"


def test_states_survive_their_packing():
    rows = torch.randn(3, 8).to(torch.bfloat16)
    assert torch.equal(unpacked(packed(rows), 8), rows)
    assert Features(4, (-1,), packed(rows[:1])).data == packed(rows[0])


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "qwen3"])
def test_the_unembedding_is_found_in_the_weights_files(name, model_dir, make_engine):
    assert torch.equal(read_unembedding(model_dir(name)), make_engine(name).unembedding())
