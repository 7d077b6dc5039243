"""The target's last hidden state: what its unembedding reads. The same for serving and for training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from specserve.errors import ConfigError

_NAMES = (("lm_head.weight", "embed_out.weight"), ("embed_tokens.weight", "embed_in.weight", "wte.weight"))


@contextlib.contextmanager
def reading(model: Any) -> Iterator[list[Tensor]]:
    """Within: every pass of the model appends what its unembedding reads, [B, n, d] for n positions with logits."""
    seen: list[Tensor] = []
    hook = _head(model).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        yield seen
    finally:
        hook.remove()


def unembedding(model: Any) -> Tensor:
    """Its weight, [V, d]."""
    weight: Tensor = _head(model).weight
    return weight


def _head(model: Any) -> Any:
    head = model.get_output_embeddings()
    if head is None:
        raise ConfigError(f"{model.config.model_type} has no output embeddings, so no heads can be put on it")
    return head


def read_unembedding(model_dir: Path) -> Tensor:
    """The same from the weights' files alone: no model is built. Raises ConfigError when no tensor is named like it."""
    for names in _NAMES:
        for file in sorted(model_dir.glob("*.safetensors")):
            with safe_open(file, framework="pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118  # no mapping
                    if key.endswith(names):
                        weight: Tensor = tensors.get_tensor(key)
                        return weight
    raise ConfigError(
        f"{str(model_dir)!r} must hold safetensors with an unembedding ({', '.join(_NAMES[0] + _NAMES[1])})"
    )
