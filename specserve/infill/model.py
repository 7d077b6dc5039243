"""An any-subset language model from a local Hugging Face directory of an `XLNetLMHeadModel`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import XLNetLMHeadModel

from specserve.errors import ConfigError
from specserve.infill.twostream import TwoStream
from specserve.types import InfillFacts

CONTEXT = 1024  # of models that name none: an XLNet has no bound of its own


def load(path: Path, *, device: str = "cpu", dtype: str = "float32", context: int | None = None) -> AnySubsetModel:
    """Open a directory with config.json and safetensors.

    Two keys of config.json are our own: `gap_stop_token_id` (ends a gap of up to n tokens) and `context_length`.

    Args:
        dtype: float32, or float64 for tests: the two streams lose too much in bf16.
        context: most positions of a sequence; by default the model's `context_length`, else 1024.
    Raises:
        ConfigError: there is no such model.
    """
    try:
        model, report = XLNetLMHeadModel.from_pretrained(
            path, dtype=getattr(torch, dtype), local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} must hold an XLNetLMHeadModel: {error}") from error
    if report["missing_keys"]:
        raise ConfigError(f"{path} must hold an XLNetLMHeadModel; these weights are missing: {report['missing_keys']}")
    if model.config.attn_type != "bi" or model.config.bi_data:
        raise ConfigError(f"{path} must have attn_type 'bi' without bi_data: other kinds see in one direction only")
    context = context or getattr(model.config, "context_length", None) or CONTEXT
    return AnySubsetModel(model.to(device), context=context, mask=_mask_token(path), name=path.name)


def _mask_token(path: Path) -> int | None:
    """The id of the tokenizer's mask token, where it has one."""
    config, vocabulary = path / "tokenizer_config.json", path / "tokenizer.json"
    if not config.is_file() or not vocabulary.is_file():
        return None
    token = json.loads(config.read_text()).get("mask_token")
    token = token.get("content") if isinstance(token, dict) else token
    added = json.loads(vocabulary.read_text()).get("added_tokens", ())
    return next((entry["id"] for entry in added if entry["content"] == token), None)


class AnySubsetModel:
    """The model and what must be known of it.

    Args:
        model: an `XLNetLMHeadModel`.
        mask: id of the mask token, which may never be written: it is banned in p and q alike.
    """

    def __init__(self, model: Any, *, context: int, mask: int | None = None, name: str = "anysubset") -> None:
        self.config = model.config
        self.twostream = TwoStream(model, context).freeze()
        self.device = model.device
        config = model.config
        self.facts = InfillFacts(
            name=name,
            vocab_size=config.vocab_size,
            context_len=context,
            bos_token_id=config.bos_token_id,
            stop_token_id=getattr(config, "gap_stop_token_id", None),
            mask_token_id=mask,
        )

    def ban(self, logits: Tensor, may_stop: Tensor) -> Tensor:
        """-inf for what may not be written: the mask token, and the stop token in gaps of exact length.

        Args:
            logits: [N, V].
            may_stop: bool [N].
        """
        facts = self.facts
        if facts.mask_token_id is not None:
            logits[:, facts.mask_token_id] = float("-inf")
        if facts.stop_token_id is not None:
            logits[~may_stop, facts.stop_token_id] = float("-inf")
        return logits
