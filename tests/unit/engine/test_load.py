"""What cannot work is refused at start, with the reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tinymodels import ARCHITECTURES, build

from specserve.engine import Engine
from specserve.errors import ConfigError
from specserve.types import ModelFacts


def config_only(path: Path, config: Any) -> Path:
    """A directory whose weights nobody gets to read."""
    config.save_pretrained(path)
    (path / "model.safetensors").touch()
    return path


@pytest.mark.parametrize(
    ("config_class", "reason"),
    [
        ("MambaConfig", "mamba keeps a recurrent"),
        ("RwkvConfig", "rwkv keeps a recurrent"),
        ("RecurrentGemmaConfig", "recurrent_gemma keeps a recurrent"),
        ("JambaConfig", "jamba keeps a recurrent"),
        ("T5Config", "t5 is an encoder-decoder"),
        ("BartConfig", "bart is an encoder-decoder"),
        ("ViTConfig", "no causal language model for model_type 'vit'"),
    ],
)
def test_an_architecture_that_cannot_work_is_refused_by_its_config(config_class: str, reason: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=reason):
        Engine(config_only(tmp_path, getattr(transformers, config_class)()))


def test_a_model_that_builds_its_own_positions_is_refused_by_the_check_at_start(tmp_path: Path):
    """BLOOM makes ALiBi from a 2-D mask: without the check a tree would silently change its text."""
    options = {"vocab_size": 128, "hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3}
    with pytest.raises(ConfigError, match="bloom does not compute through the token pool"):
        Engine(build(tmp_path / "bloom", "BloomConfig", options))


def test_a_directory_without_the_needed_files_is_refused(tmp_path: Path, model_dir: Callable[[str], Path]):
    with pytest.raises(ConfigError, match=r"must hold a config\.json"):
        Engine(tmp_path / "nothing")
    shutil.copy(model_dir("llama") / "config.json", tmp_path)
    with pytest.raises(ConfigError, match="must hold weights"):
        Engine(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        Engine(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no_such_model"}))
    with pytest.raises(ConfigError, match="no_such_model"):
        Engine(tmp_path)


def test_weights_that_lack_a_tensor_are_refused_rather_than_made_up(tmp_path: Path, model_dir: Callable[[str], Path]):
    shutil.copytree(model_dir("llama"), tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"lack 1 tensors, the first is model\.layers\.1\.mlp\.up_proj"):
        Engine(tmp_path)


def test_unknown_dtype_and_absent_device_are_refused(model_dir: Callable[[str], Path]):
    with pytest.raises(ConfigError, match="dtype must be one of float32, bfloat16, float16; got 'int4'"):
        Engine(model_dir("llama"), dtype="int4")
    with pytest.raises(ConfigError, match="device must be a torch device"):
        Engine(model_dir("llama"), device="warp:9")
    with pytest.raises(ConfigError, match=r"torch sees .* CUDA devices"):
        Engine(model_dir("llama"), device=f"cuda:{torch.cuda.device_count() + 1}")
    with pytest.raises(ConfigError, match="slots must be at least"):
        Engine(model_dir("llama"), slots=10)


def test_facts_are_the_models_own(model_dir: Callable[[str], Path]):
    assert Engine(model_dir("opt"), trace=False).facts() == ModelFacts("opt", 128, 256, (2,))


def test_a_rotation_that_changes_with_length_limits_the_context_to_where_it_does_not(tmp_path: Path):
    """longrope rotates every position anew beyond the original length; keys in the pool would be wrong."""
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "rope_theta": 1e4}
    options = {**ARCHITECTURES["phi3"][1], "rope_parameters": rope, "original_max_position_embeddings": 64}
    engine = Engine(build(tmp_path / "phi3", "Phi3Config", options), trace=False)
    assert engine.facts().context_len == 64


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_models_load_and_pass_their_own_check(dtype: str, model_dir: Callable[[str], Path]):
    assert Engine(model_dir("gemma2"), dtype=dtype).traced
