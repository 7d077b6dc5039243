"""The engine alone: fast paths against slow ones, isolation, limits, books."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from tinymodels import VOCAB, plain, text

from specserve.engine import Engine, Row
from specserve.errors import InvalidRequest, Overloaded
from specserve.types import Draft

Make = Callable[..., Engine]


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_the_trace_computes_what_the_stock_code_computes(name: str, make_engine: Make):
    """Same batches through both, shapes and contents the trace has not seen at start."""
    rng = random.Random(7)
    pair = [make_engine(name, trace=True), make_engine(name, trace=False)]
    assert [engine.traced for engine in pair] == [True, False]
    for engine in pair:
        for session in range(3):
            engine.open(session, 60)
    for _ in range(6):
        rows = []
        for session in rng.sample(range(3), rng.randint(1, 3)):
            nodes = rng.randint(0, 3)
            parents = tuple(rng.randint(-1, i - 1) for i in range(nodes))
            ids = [rng.randrange(VOCAB) for _ in range(rng.choice([1, 1, 5]) + nodes)]
            rows.append(Row(session, ids[nodes:], Draft(tuple(ids[:nodes]), parents)))
        fast, slow = (engine.forward(rows).logits for engine in pair)
        torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-5)
        for engine in pair:
            for row in rows:
                engine.commit(row.session, row.draft.path(len(row.draft) - 1))
    for engine in pair:
        for session in range(3):
            engine.close(session)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3_text", "gpt2"])
def test_a_chain_computes_what_single_forward_passes_compute(name: str, make_engine: Make):
    """Alone on a straight run (in the pool itself), and in a ragged batch (gathered): both against the plain model."""
    engine = make_engine(name, trace=True)
    texts = {1: text(30, 1), 2: text(24, 2)}
    for session, held in ((1, 20), (2, 14)):
        engine.open(session, 40)
        engine.forward([Row(session, texts[session][:held], logits=False)])
    for sessions in ([1], [1, 2]):
        held = {s: engine.held(s) for s in sessions}
        with engine.chain(sessions, 4) as chain:
            for step in range(3):
                laws = chain.step(torch.tensor([texts[s][held[s] + step] for s in sessions]))
                for law, s in zip(laws, sessions, strict=True):
                    torch.testing.assert_close(law, plain(engine, texts[s])[held[s] + step], rtol=1e-4, atol=1e-4)
        assert {s: engine.held(s) for s in sessions} == {s: held[s] + 3 for s in sessions}
    after = engine.forward([Row(s, texts[s][engine.held(s) :][:1]) for s in (1, 2)]).logits
    for law, s in zip(after, (1, 2), strict=True):
        torch.testing.assert_close(law, plain(engine, texts[s])[engine.held(s) - 1], rtol=1e-4, atol=1e-4)
    for session in (1, 2):
        engine.close(session)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["llama", "gemma2", "mixtral"])
def test_a_gpu_computes_what_the_cpu_computes(name: str, make_engine: Make):
    laws = []
    for device in ("cpu", "cuda"):
        engine = make_engine(name, device=device, trace=True)
        engine.open(1, 60)
        engine.open(2, 60)
        tree = Draft((5, 6, 7), (-1, -1, 1))
        scores = [engine.forward([Row(1, text(20), tree), Row(2, text(9))]).logits.cpu()]
        engine.commit(1, (1, 2))
        with engine.chain([1, 2], 2) as chain:
            scores += [chain.step(torch.tensor([token, 9], device=device)).cpu() for token in (3, 4)]
        engine.close(1)
        engine.close(2)
        laws.append(torch.cat(scores))
    torch.testing.assert_close(laws[0], laws[1], rtol=1e-3, atol=1e-3)


def test_accepting_a_path_writes_nothing_to_the_pool(make_engine: Make):
    engine = make_engine()
    engine.open(1, 40)
    engine.forward([Row(1, text(9), Draft((5, 6, 7, 8), (-1, -1, 1, 2)))])
    before = [pool.clone() for pool in engine._pools.keys + engine._pools.values]
    engine.commit(1, (1, 2, 3))
    assert engine.held(1) == 12
    for old, new in zip(before, engine._pools.keys + engine._pools.values, strict=True):
        assert torch.equal(old, new)
    law = engine.forward([Row(1, [9])]).logits[0]
    torch.testing.assert_close(law, plain(engine, [*text(9), 6, 7, 8, 9])[-1], rtol=1e-4, atol=1e-4)
    engine.close(1)


def test_not_a_number_in_one_session_reaches_no_other(make_engine: Make):
    """Token 0 (which pads queries) and token 99 are poisoned; slots that held NaN are then used by others."""
    engine = make_engine("llama")
    with torch.inference_mode():
        engine._model.get_input_embeddings().weight[[0, 99]] = float("nan")
    sick, well = [5, 99, 6, 7], text(11)
    engine.open(1, 20)
    engine.open(2, 20)
    logits = engine.forward([Row(1, sick), Row(2, well)]).logits
    assert torch.isnan(logits[0]).all()
    torch.testing.assert_close(logits[1], plain(engine, well)[-1], rtol=1e-4, atol=1e-4)
    engine.close(1)
    engine.open(3, 20)
    for _ in range(2):  # the freed slots serve a chain's reserve, then a batch
        engine.forward([Row(3, well[:3])])
        with engine.chain([3], 8) as chain:
            assert torch.isfinite(chain.step(torch.tensor([7]))).all()
        engine.truncate(3, 0)
    logits = engine.forward([Row(3, well[:2]), Row(2, well[:8])]).logits
    assert torch.isfinite(logits).all()
    engine.close(2)
    engine.close(3)


def test_room_is_promised_for_the_longest_text_and_the_largest_draft(make_engine: Make):
    engine = make_engine(slots=160, max_nodes=16)
    engine.open(1, 64)
    assert not engine.room(65)
    with pytest.raises(Overloaded, match="80 slots unpromised; 81 are needed"):
        engine.open(2, 65)
    engine.open(2, 64)
    for session in (1, 2):
        engine.forward([Row(session, text(64), Draft.chain(tuple(text(16))))])
    engine.check_integrity()
    assert engine.stats()["slots_used"] == 160
    engine.close(1)
    engine.close(2)


def test_what_can_never_fit_is_told_apart_from_what_does_not_fit_now(make_engine: Make):
    engine = make_engine(slots=100, max_nodes=16)
    with pytest.raises(InvalidRequest, match=r"max_len must be between 1 and 84 .*pool 100 slots.*got 85"):
        engine.open(1, 85)
    with pytest.raises(InvalidRequest, match=r"between 1 and 256 \(the model's context is 256.*got 257"):
        make_engine(slots=1024).open(1, 257)


def test_positions_beyond_the_models_are_refused_and_the_row_is_as_before(make_engine: Make):
    """gpt2 has a table of 256 positions; a draft may touch the last one, by depth and not by count."""
    engine = make_engine("gpt2")
    engine.open(1, 256)
    engine.forward([Row(1, text(254), logits=False)])
    with pytest.raises(InvalidRequest, match="context of 256"):
        engine.forward([Row(1, [5], Draft.chain((6, 7)))])
    assert engine.held(1) == 254
    assert engine.forward([Row(1, [5], Draft((6, 7, 8), (-1, -1, -1)))]).logits.shape == (4, VOCAB)
    engine.close(1)


def test_rows_that_want_no_logits_get_none(make_engine: Make):
    engine = make_engine()
    engine.open(1, 20)
    engine.open(2, 20)
    assert engine.forward([Row(1, [5, 6], logits=False)]).logits.shape == (0, VOCAB)
    scores = engine.forward([Row(1, [5, 6], logits=False), Row(2, [7], Draft((8, 9), (-1, 0)))])
    torch.testing.assert_close(scores.logits, plain(engine, [7, 8, 9]), rtol=1e-4, atol=1e-4)
    assert scores.seconds > 0
    engine.close(1)
    engine.close(2)


@pytest.mark.parametrize("seed", range(3))
def test_any_sequence_of_operations_keeps_the_books_and_the_text(seed: int, make_engine: Make):
    """Random opens, rounds, truncations and closes. After each, the law after the text is the plain model's."""
    rng = random.Random(seed)
    engine = make_engine("mistral", slots=200, max_nodes=8)
    texts: dict[int, list[int]] = {}
    for _ in range(40):
        action = rng.choice(["open", "round", "round", "round", "truncate", "close"])
        if action == "open" and engine.room(40):
            session = max(texts, default=0) + 1
            engine.open(session, 40)
            texts[session] = []
        elif action == "round" and texts:
            chosen = [s for s in texts if len(texts[s]) < 24 and rng.random() < 0.7]
            rows = []
            for session in chosen:
                nodes = rng.randint(0, 8)
                draft = Draft(
                    tuple(rng.randrange(VOCAB) for _ in range(nodes)),
                    tuple(rng.randint(-1, i - 1) for i in range(nodes)),
                )
                rows.append(Row(session, [rng.randrange(VOCAB) for _ in range(rng.randint(1, 6))], draft))
            logits = engine.forward(rows).logits if rows else torch.empty(0)
            for row in rows:
                texts[row.session] += row.tokens
                torch.testing.assert_close(logits[0], plain(engine, texts[row.session])[-1], rtol=1e-3, atol=1e-3)
                logits = logits[1 + len(row.draft) :]
                path = row.draft.path(rng.randint(-1, len(row.draft) - 1))
                engine.commit(row.session, path)
                texts[row.session] += [row.draft.tokens[node] for node in path]
        elif action == "truncate" and texts:
            session = rng.choice(list(texts))
            length = rng.randint(0, len(texts[session]))
            engine.truncate(session, length)
            del texts[session][length:]
        elif action == "close" and texts:
            session = rng.choice(list(texts))
            engine.close(session)
            del texts[session]
        engine.check_integrity()
        assert {s: engine.held(s) for s in texts} == {s: len(t) for s, t in texts.items()}
    for session in texts:
        engine.close(session)


def test_a_failed_pass_leaves_every_session_as_it_was(make_engine: Make, monkeypatch: pytest.MonkeyPatch):
    engine = make_engine()
    engine.open(1, 20)
    engine.forward([Row(1, [5, 6])])

    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(engine, "_program", broken_program(engine, broken))
        with pytest.raises(RuntimeError, match="out of memory"):
            engine.forward([Row(1, [7], Draft((8,), (-1,)))])
    engine.check_integrity()
    assert engine.held(1) == 2
    torch.testing.assert_close(
        engine.forward([Row(1, [7])]).logits[0], plain(engine, [5, 6, 7])[-1], rtol=1e-4, atol=1e-4
    )
    engine.close(1)


def broken_program(engine: Engine, call: Callable[..., None]) -> object:
    """The engine's program, but for its call."""
    program = type("Broken", (), {"windows": engine._program.windows, "mask": engine._program.mask, "__call__": call})
    return program()
