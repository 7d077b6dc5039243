"""Rank-r CP heads: the law of the next n tokens given the target's last hidden state.   (2410.17765)

p(x_1..x_n | h) = Σ_α w_α(h) Π_s p_α^s(x_s | h),   w = softmax(G h),   p_α^s = softmax(W_U A_{s,α} h)

W_U is the target's own unembedding, frozen, and no part of the saved weights. Rank 1 is independent heads.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from specserve.errors import ConfigError

KIND = "specserve-heads"
_NOISE = 0.02


@dataclass(frozen=True)
class Shape:
    """What heads are made of.

    Args:
        width: of the target's hidden state, d.
        vocab: the target's vocabulary, V.
        tokens: how many tokens the law is about, n.
        rank: terms of the mixture, r.
        low_rank: each A is the identity and a product of [d, k] and [k, d]; None: a full matrix.
        reduced: ids per position that can be drafted at all, m; None: the whole vocabulary.
    """

    width: int
    vocab: int
    tokens: int = 8
    rank: int = 1
    low_rank: int | None = None
    reduced: int | None = None

    @property
    def columns(self) -> int:
        """Ids that a factor is a law of, m."""
        return self.vocab if self.reduced is None else self.reduced


class Heads(nn.Module):
    """The trained part: the gate G and one matrix A per position and term.

    Every A starts as the identity with noise of its own: equal terms would get equal gradients and stay equal.

    Attributes:
        ids: int64 [m], the vocabulary's ids that columns stand for.
    """

    ids: Tensor

    def __init__(self, shape: Shape, ids: Tensor | None = None) -> None:
        super().__init__()
        n, r, d, k = shape.tokens, shape.rank, shape.width, shape.low_rank
        self.shape = shape
        self.register_buffer("ids", torch.arange(shape.columns) if ids is None else ids)
        self.gate = nn.Parameter(torch.randn(r, d) / d)
        if k is None:
            self.full = nn.Parameter(_NOISE * torch.randn(n, r, d, d))
        else:
            self.down = nn.Parameter(torch.randn(n, r, k, d) / d**0.5)
            self.up = nn.Parameter(_NOISE * torch.randn(n, r, d, k))

    def weights(self, hidden: Tensor) -> Tensor:
        """log w. hidden: [N, d]; returns [N, r], in fp32 at least."""
        return wide(nn.functional.linear(hidden, self.gate)).log_softmax(-1)

    def states(self, hidden: Tensor, positions: int | None = None) -> Tensor:
        """A h for the first so many positions (all by default) and every term. hidden: [N, d]; returns [n, r, N, d]."""
        if self.shape.low_rank is None:
            return hidden + torch.einsum("srde,Ne->srNd", self.full[:positions], hidden)
        down, up = self.down[:positions], self.up[:positions]
        narrow = (down.flatten(0, 2) @ hidden.T).view(*down.shape[:3], -1)  # [n, r, k, N]
        return hidden + (up @ narrow).transpose(-1, -2)

    def save(self, folder: Path) -> None:
        """Write config.json and bf16 safetensors."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: p.detach().to(torch.bfloat16).contiguous() for name, p in self.named_parameters()}
        save_file({**tensors, "ids": self.ids.to(torch.int32)}, folder / "model.safetensors")
        (folder / "model.safetensors").chmod(0o644)
        (folder / "config.json").write_text(json.dumps({"model_type": KIND, **asdict(self.shape)}, indent=1) + "\n")


def wide(numbers: Tensor) -> Tensor:
    """In fp32, or in fp64 where they are."""
    return numbers.to(torch.promote_types(numbers.dtype, torch.float32))


def read_shape(folder: Path) -> Shape:
    """The shape of saved heads. Raises ConfigError when the folder holds none."""
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"heads {str(folder)!r} must hold a config.json that can be read: {error}") from error
    if config.pop("model_type", None) != KIND:
        raise ConfigError(f"heads {str(folder)!r} must be of model_type {KIND}; make some by `specserve train heads`")
    return Shape(**config)


def load_heads(folder: Path) -> Heads:
    """Saved heads, in fp32 on the CPU. Raises ConfigError as `read_shape` does."""
    shape = read_shape(folder)
    tensors = load_file(folder / "model.safetensors")
    heads = Heads(shape, tensors.pop("ids").long())
    heads.load_state_dict({name: t.float() for name, t in tensors.items()} | {"ids": heads.ids})
    return heads.eval().requires_grad_(False)
