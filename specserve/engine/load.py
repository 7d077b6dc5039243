"""From a model directory to a model and the facts about it, or to a refusal that says why."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from specserve.engine import attention
from specserve.errors import ConfigError
from specserve.types import ModelFacts

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
ATTENTION_KINDS = ("full_attention", "sliding_attention")


def parse_dtype(name: str) -> torch.dtype:
    """float32, bfloat16 or float16."""
    if name not in DTYPES:
        raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}; got {name!r}")
    return DTYPES[name]


def parse_device(name: str) -> torch.device:
    """A torch device that is there."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device must be a torch device such as 'cpu' or 'cuda:0'; got {name!r}") from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise ConfigError(
                f"device {name!r} was asked for and torch sees {count} CUDA devices; "
                "give the replica a GPU (num_gpus), install a CUDA build of torch, or set device to 'cpu'"
            )
    return device


def load_config(model_dir: str | Path) -> Any:
    """The directory's config, if a token pool can serve the architecture it names.

    Raises:
        ConfigError: no such directory or file, encoder-decoder, recurrent state, or no causal LM.
    """
    path = Path(model_dir)
    if not (path / "config.json").is_file():
        raise ConfigError(f"model directory {str(path)!r} must hold a config.json; it does not exist or has none")
    if not any(next(path.glob(pattern), None) for pattern in WEIGHTS):
        raise ConfigError(f"model directory {str(path)!r} must hold weights ({' or '.join(WEIGHTS)}); it has none")
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True)
    except (ValueError, OSError, KeyError) as error:
        raise ConfigError(f"{path / 'config.json'} cannot be read as a model config: {error}") from error
    kind = config.model_type
    if config.is_encoder_decoder:
        raise ConfigError(f"{kind} is an encoder-decoder; the engine serves decoder-only causal language models")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ConfigError(f"transformers has no causal language model for model_type {kind!r}")
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if getattr(model_class, "_is_stateful", False):
        raise ConfigError(
            f"{kind} keeps a recurrent (state-space) state, which cannot be rolled back to an accepted prefix; "
            "the engine serves models whose every layer is attention over cached keys and values"
        )
    strange = sorted(set(getattr(text_config(config), "layer_types", None) or ()) - set(ATTENTION_KINDS))
    if strange:
        raise ConfigError(f"{kind} has layers of type {', '.join(strange)}; supported: {', '.join(ATTENTION_KINDS)}")
    return config


def load_model(model_dir: str | Path, config: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """The model in evaluation mode, with the fastest attention that computes what the architecture means."""
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    # Soft-capping of attention scores and attention sinks exist in eager code only.
    capped = getattr(text_config(config), "attn_logit_softcapping", None) is not None
    sdpa = getattr(model_class, "_supports_sdpa", False) and not capped
    ours = sdpa and getattr(model_class, "_supports_attention_backend", False)
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            Path(model_dir),
            config=config,
            dtype=dtype,
            attn_implementation=attention.register() if ours else "sdpa" if sdpa else "eager",
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # transformers raises many kinds here; all mean that the directory cannot be used
        raise ConfigError(f"the model in {str(model_dir)!r} cannot be loaded: {error}") from error
    missing = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if missing:
        raise ConfigError(f"the weights in {str(model_dir)!r} lack {len(missing)} tensors, the first is {missing[0]}")
    return model.to(device).eval().requires_grad_(False)


def text_config(config: Any) -> Any:
    """The language model's part of a config."""
    return config.get_text_config(decoder=True)


def mask_plans(config: Any) -> list[list[tuple[str, int]]]:
    """How the model may want its masks, likeliest first: (layer type, window in tokens, 0 for none) for a dict
    of masks, the layer type "" for one mask."""
    text = text_config(config)
    window = int(getattr(text, "sliding_window", None) or 0)
    kinds = sorted(set(getattr(text, "layer_types", None) or ()))
    one = [("", window)]
    if "sliding_attention" in kinds:
        return [[(kind, window if kind == "sliding_attention" else 0) for kind in kinds], one]
    return [[("", 0)] if kinds else one]


def facts_of(model: Any, vocab_size: int, name: str) -> ModelFacts:
    """What the router must know. A model without a position limit gets one beyond any pool."""
    text = text_config(model.config)
    limit = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)
    rope = getattr(text, "rope_parameters", None) or {}
    laws = rope.values() if any(isinstance(law, dict) for law in rope.values()) else [rope]
    for law in laws:
        # These change the rotation of ALL positions once a sequence outgrows the original length: keys already
        # in the pool, and those of shorter sequences in the same batch, would be wrong. Stay below.
        if isinstance(law, dict) and law.get("rope_type") in ("longrope", "dynamic"):
            original = law.get("original_max_position_embeddings") or getattr(
                text, "original_max_position_embeddings", None
            )
            limit = min(x for x in (limit, original) if x)
    return ModelFacts(
        name=name,
        vocab_size=vocab_size,
        context_len=int(limit) if limit else math.floor(2**31),
        eos_token_ids=_eos(model),
    )


def _eos(model: Any) -> tuple[int, ...]:
    for source in (getattr(model, "generation_config", None), model.config, text_config(model.config)):
        eos = getattr(source, "eos_token_id", None)
        if eos is not None:
            return tuple(int(i) for i in eos) if isinstance(eos, (list, tuple)) else (int(eos),)
    return ()
