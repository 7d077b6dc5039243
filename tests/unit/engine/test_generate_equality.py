"""The promise: for every architecture, text through the pool equals the model's own `generate`, whatever is drafted."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tinymodels import ARCHITECTURES, VOCAB, text
from transformers import AutoModelForCausalLM

from specserve.engine import Engine, Verifier
from specserve.types import Close, Draft, Sampling, SessionSpec, Verdict, Verify

NEW = 20


def generate(path: Path, prompts: list[list[int]], count: int) -> list[list[int]]:
    """`count` tokens after each prompt, greedily, by transformers alone."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype="float32")
    model.generation_config.eos_token_id = None
    texts = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=count)
        texts.append([int(i) for i in out[0, len(prompt) :]])
    return texts


def two_branches(coming: list[int], rng: random.Random) -> Draft:
    """A tree of a right branch (some of the coming text) and a wrong one, its nodes in random order."""
    left = [coming[: rng.randint(0, 4)], [rng.randrange(VOCAB) for _ in range(rng.randint(0, 4))]]
    tokens: list[int] = []
    parents: list[int] = []
    at = [-1, -1]
    while any(left):
        side = rng.choice([i for i in (0, 1) if left[i]])
        tokens.append(left[side].pop(0))
        parents.append(at[side])
        at[side] = len(tokens) - 1
    return Draft(tuple(tokens), tuple(parents), ("",) * len(tokens))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_text_equals_generate_in_ragged_batches_with_trees_and_chunked_prompts(
    name: str, model_dir: Callable[[str], Path]
) -> None:
    """Three sessions at once; prompts longer than the chunk and the sliding windows (12); right and wrong drafts."""
    rng = random.Random(name)
    prompts = [text(length, seed) for seed, length in enumerate((3, 17, 41))]
    want = generate(model_dir(name), prompts, NEW + 8)
    engine = Engine(model_dir(name), slots=512, max_nodes=8)
    verifier = Verifier(engine, prefill_chunk=8, round_tokens=4)
    got: list[list[int]] = [[] for _ in prompts]
    drafts: dict[int, Draft] = {}
    accepted = 0
    for i, prompt in enumerate(prompts):
        drafts[i] = two_branches(want[i], rng)
        spec = SessionSpec(Sampling(), len(prompt), len(prompt) + NEW + 8)
        assert not verifier.submit(Verify(i, 0, tuple(prompt), drafts[i], spec))
    while drafts:
        for reply in verifier.step():
            assert isinstance(reply, Verdict), reply
            i, draft = reply.session, drafts.pop(reply.session)
            got[i] += [draft.tokens[node] for node in reply.accepted] + [reply.token]
            accepted += len(reply.accepted)
            if len(got[i]) < NEW:
                drafts[i] = two_branches(want[i][len(got[i]) :], rng)
                assert not verifier.submit(Verify(i, len(prompts[i]) + len(got[i]), (), drafts[i]))
            else:
                verifier.submit(Close(i))
        verifier.check_integrity()
    assert [tokens[:NEW] for tokens in got] == [tokens[:NEW] for tokens in want]
    assert accepted >= NEW, "right branches must be accepted"
    assert engine.stats()["slots_used"] == 0
