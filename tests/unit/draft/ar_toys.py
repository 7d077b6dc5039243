"""Texts, commands and slow oracles for tests of AR drafters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from specserve.draft.ar import ArDrafter
from specserve.types import Command, Propose, Reply, Sampling, SessionSpec
from specserve.verify import sample

VOCAB, CONTEXT = 96, 128


def text(length: int, seed: int = 0) -> list[int]:
    return [(i * i * 29 + i * 13 + seed * 41) % VOCAB for i in range(length)]


def begin(
    session: int,
    prompt: Sequence[int],
    depth: int,
    max_len: int = 100,
    rule: str = "coupled",
    branches: int = 0,
    nodes: int = 0,
    **sampling: Any,
) -> Propose:
    spec = SessionSpec(Sampling(**sampling), len(prompt), max_len, rule, branches, nodes)
    return Propose(session, 0, tuple(prompt), depth, spec)


def drain(drafter: ArDrafter, *commands: Command) -> list[Reply]:
    replies = [reply for command in commands for reply in drafter.submit(command)]
    while drafter.busy:
        replies += drafter.step()
        drafter.engine.check_integrity()
    return replies


def law(drafter: ArDrafter, tokens: list[int]) -> torch.Tensor:
    """The model's own law after these tokens, [1, V], without pool or cache."""
    with torch.inference_mode():
        logits: torch.Tensor = drafter.engine._model(input_ids=torch.tensor([tokens]), use_cache=False).logits[:, -1]
    return logits


def own_text(drafter: ArDrafter, tokens: list[int], count: int, **sampling: Any) -> tuple[int, ...]:
    """The slow oracle: what the small model itself would write, one plain pass per token."""
    spec = SessionSpec(Sampling(**sampling), len(tokens), 100)
    got: list[int] = []
    for _ in range(count):
        history = [*tokens, *got]
        got.append(int(sample(law(drafter, history), [spec], [history])[0]))
    return tuple(got)
