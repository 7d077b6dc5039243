"""What a recipe leaves behind: a Hugging Face directory in bf16, and a file that says how it was made."""

import hashlib
import json
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import tokenizers
import torch
import transformers

PROVENANCE = "provenance.json"


@dataclass(frozen=True)
class Report:
    """The outcome of a recipe. `figures` are held-out measurements of the saved (bf16) weights."""

    out: Path
    parameters: int
    steps: int
    tokens: int
    seconds: float
    figures: dict[str, float]


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def fingerprint(recipe: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(recipe, sort_keys=True, default=str).encode()).hexdigest()[:16]


def versions() -> dict[str, str]:
    """Of what recipes run on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
        "numpy": numpy.__version__,
    }


def save_model(model: Any, out: Path) -> None:
    """Write config.json, generation_config.json and bf16 safetensors; the model itself becomes bf16."""
    with quiet():
        model.to(torch.bfloat16).save_pretrained(out)
    for file in out.glob("*.safetensors"):
        file.chmod(0o644)


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars of transformers beside our own."""
    talk = transformers.utils.logging
    shown = talk.is_progress_bar_enabled()
    talk.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            talk.enable_progress_bar()


def write_provenance(report: Report, **facts: Any) -> None:
    """`provenance.json`: the given facts, the outcome, the versions, and a hash of every other file."""
    out = report.out
    files = sorted(p for p in out.iterdir() if p.is_file() and p.name != PROVENANCE)
    content = {
        **facts,
        "parameters": report.parameters,
        "steps": report.steps,
        "tokens": report.tokens,
        "seconds": round(report.seconds, 1),
        "held_out": {name: round(value, 5) for name, value in report.figures.items()},
        "versions": versions(),
        "files": {path.name: sha256_of(path) for path in files},
    }
    (out / PROVENANCE).write_text(json.dumps(content, indent=1) + "\n")
