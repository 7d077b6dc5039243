"""Make a model cost like a larger one while it computes the same function.

Appended layers have zero output projections, so they add nothing to the residual stream; widened FFNs have zero
columns where the new units would write. Everything else is random, so the arithmetic is that of a real model of
the size. Equal up to the rounding of sums whose blocks fall differently.
"""

import json
import math
import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from specserve.errors import ConfigError
from specserve.fingerprint import INFLATED, fingerprint

LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
WRITES = ("self_attn.o_proj", "mlp.down_proj")
WIDENS = ("mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight")
MOST_LAYERS = 16
FFN_STEP = 64


def inflate(source_dir: Path, out_dir: Path, parameters: int, *, seed: int = 0) -> int:
    """Write a deeper and wider model with the same function to `out_dir`.

    Args:
        source_dir: a Hugging Face directory of a Llama-shaped model (Llama, Mistral, Qwen2, Qwen3).
        parameters: reach at least this many, tied embeddings counted once. Layers are added first, up to 16 in
            all, then the FFNs are widened; the hidden size stays.
    Returns:
        The parameter count of the written model.
    Raises:
        ConfigError: the source is not Llama-shaped.
    """
    config = json.loads((source_dir / "config.json").read_text())
    weights: dict[str, Tensor] = {}
    for file in sorted(source_dir.glob("*.safetensors")):
        weights.update(load_file(file))
    if config.get("mlp_bias") or not {f"model.layers.0.{name}" for name in WIDENS} <= weights.keys():
        raise ConfigError(
            f"inflate needs a Llama-shaped model without FFN biases, got {config.get('model_type')!r} in {source_dir}"
        )

    before = _count(weights)
    layers, ffn = _size(config, weights, parameters)
    grown = _grow(weights, config["num_hidden_layers"], layers, ffn, torch.Generator().manual_seed(seed))
    note = {
        "inflated": "function-preserving: appended layers and added FFN units have zero output weights",
        "parameters": _count(grown),
        "source_parameters": before,
        "layers": [config["num_hidden_layers"], layers],
        "ffn": [config["intermediate_size"], ffn],
        "seed": seed,
        INFLATED: fingerprint(source_dir),
    }
    if config.get("layer_types"):
        kinds = config["layer_types"]
        config["layer_types"] = kinds + kinds[-1:] * (layers - len(kinds))
    config |= {"num_hidden_layers": layers, "intermediate_size": ffn}

    out_dir.mkdir(parents=True, exist_ok=True)
    provenance = source_dir / "provenance.json"
    if provenance.exists():
        note["source"] = json.loads(provenance.read_text())
    for file in source_dir.iterdir():
        if file.is_file() and file.suffix != ".safetensors" and not file.name.endswith(".index.json"):
            shutil.copyfile(file, out_dir / file.name)
    (out_dir / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (out_dir / "provenance.json").write_text(json.dumps(note, indent=1) + "\n")
    save_file(grown, out_dir / "model.safetensors", metadata={"format": "pt"})
    return _count(grown)


def _count(weights: dict[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in weights.values())


def _size(config: dict[str, int], weights: dict[str, Tensor], parameters: int) -> tuple[int, int]:
    """Layers and FFN width that reach `parameters`: depth first, then width."""
    layers, ffn, hidden = config["num_hidden_layers"], config["intermediate_size"], config["hidden_size"]
    layer = sum(t.numel() for name, t in weights.items() if name.startswith("model.layers.0."))
    missing = parameters - _count(weights)
    depth = max(layers, min(MOST_LAYERS, layers + math.ceil(missing / layer)))
    missing -= (depth - layers) * layer
    units = max(0, math.ceil(missing / (depth * len(WIDENS) * hidden)))
    return depth, ffn + math.ceil(units / FFN_STEP) * FFN_STEP


def _grow(weights: dict[str, Tensor], before: int, layers: int, ffn: int, random: torch.Generator) -> dict[str, Tensor]:
    grown = {}
    for name, tensor in weights.items():
        place = LAYER.fullmatch(name)
        grown[name] = _widen(place[2], tensor, ffn, random) if place else tensor
    for part in [m[2] for name in weights if (m := LAYER.fullmatch(name)) and m[1] == "0"]:
        like = grown[f"model.layers.0.{part}"]
        for layer in range(before, layers):
            grown[f"model.layers.{layer}.{part}"] = _idle(part, like, random)
    return grown


def _widen(part: str, tensor: Tensor, ffn: int, random: torch.Generator) -> Tensor:
    """Add FFN units: random rows to gate and up ([F, H]), zero columns to down ([H, F])."""
    if part not in WIDENS:
        return tensor
    if part.startswith(WRITES):
        return torch.cat([tensor, tensor.new_zeros(tensor.shape[0], ffn - tensor.shape[1])], dim=1)
    return torch.cat([tensor, _random(tensor, (ffn - tensor.shape[0], tensor.shape[1]), random)])


def _idle(part: str, like: Tensor, random: torch.Generator) -> Tensor:
    if part.startswith(WRITES):
        return torch.zeros_like(like)
    return like.clone() if like.ndim == 1 else _random(like, tuple(like.shape), random)


def _random(like: Tensor, shape: tuple[int, ...], random: torch.Generator) -> Tensor:
    return (torch.randn(shape, generator=random) * like.float().std()).to(like.dtype)
