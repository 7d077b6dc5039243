"""Tiny random models of every architecture, saved as a user would have them: a directory each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from specserve.engine import Engine

VOCAB = 128
_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.3,
}
_HEADS = {**_COMMON, "num_key_value_heads": None}
_GEMMA = {**_COMMON, "head_dim": 16, "sliding_window": 12, "query_pre_attn_scalar": 16}
MIXED = ["sliding_attention", "full_attention"]

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _COMMON),
    "qwen2": ("Qwen2Config", {**_COMMON, "use_sliding_window": True, "sliding_window": 12, "layer_types": MIXED}),
    "qwen3": ("Qwen3Config", {**_COMMON, "head_dim": 16}),
    "mistral": ("MistralConfig", {**_COMMON, "sliding_window": 12}),
    "phi3": ("Phi3Config", {**_COMMON, "sliding_window": None}),
    "gemma2": ("Gemma2Config", {**_GEMMA, "layer_types": MIXED, "attn_logit_softcapping": 2.0}),
    "gemma3_text": ("Gemma3TextConfig", {**_GEMMA, "layer_types": MIXED}),
    "olmo2": ("Olmo2Config", _COMMON),
    "granite": ("GraniteConfig", {**_COMMON, "logits_scaling": 4.0, "residual_multiplier": 0.5}),
    "mixtral": ("MixtralConfig", {**_COMMON, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 12}),
    "gpt2": ("GPT2Config", {**_COMMON, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}),
    "gpt_neox": ("GPTNeoXConfig", _COMMON),
    "opt": ("OPTConfig", {**_COMMON, "ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.3}),
}


def build(path: Path, config_class: str, options: dict[str, Any], seed: int = 0) -> Path:
    """Make a random model and save it. Weights are drawn from a generator of our own: no global randomness."""
    given = {name: value for name, value in options.items() if value is not None or name == "sliding_window"}
    config = getattr(transformers, config_class)(**given)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config)
    model.generation_config.eos_token_id = 2
    model.generation_config.pad_token_id = 0
    model.save_pretrained(path)
    return path


def text(length: int, seed: int = 0) -> list[int]:
    """Some token ids, none of them special."""
    return [3 + (i * i * 31 + i * 17 + seed * 53) % (VOCAB - 3) for i in range(length)]


def plain(engine: Engine, tokens: list[int]) -> torch.Tensor:
    """The model's own laws after every token, [n, V], without pool or cache."""
    with torch.inference_mode():
        logits: torch.Tensor = engine._model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
    return logits
