"""A small autoregressive model on disk, and drafters over it that must leave nothing behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ar_toys import CONTEXT, VOCAB
from transformers import AutoModelForCausalLM, LlamaConfig

from specserve.draft.ar import ArDrafter
from specserve.engine import Engine
from specserve.types import Close


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A random two-layer llama, on disk; one thread, since more only wait for each other at this size."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(config)
    path = tmp_path_factory.mktemp("drafter")
    model.save_pretrained(path)
    yield path
    torch.set_num_threads(before)


@pytest.fixture
def make_drafter(small_model: Path) -> Iterator[Callable[..., ArDrafter]]:
    """Drafters; afterwards, with all sessions closed, every slot is free."""
    made: list[ArDrafter] = []

    def make(slots: int = 800, nodes: int = 8, trace: bool = False, **options: Any) -> ArDrafter:
        engine = Engine(small_model, slots=slots, max_nodes=nodes, trace=trace)
        made.append(ArDrafter(engine, **{"prefill_chunk": 16, "round_tokens": 8, **options}))
        return made[-1]

    yield make
    for drafter in made:
        drafter.engine.check_integrity()
        for session in list(drafter.engine.sessions):
            drafter.submit(Close(session))
        assert not drafter.busy
        assert drafter.stats()["slots_used"] == 0
        assert drafter.stats()["slots_free"] == drafter.stats()["slots"]
