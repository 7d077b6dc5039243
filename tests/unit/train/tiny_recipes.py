"""Recipes so small that each runs in well under a second."""

from pathlib import Path
from typing import Any

from specserve.train.ar import train_ar
from specserve.train.artefact import Report
from specserve.train.heads import train_heads
from specserve.train.shape import Shape
from specserve.train.target import train_target

TINY = Shape(vocab=320, hidden=64, layers=1, ffn=64, heads=2, kv_heads=1, head_dim=32, context=256)


def small_target(out: Path, corpus: Path, **changes: Any) -> Report:
    settings = {"tokens": 3 * 64, "batch_size": 2, "length": 32, "shape": TINY, "workdir": out / "work"}
    silent = {"report": lambda progress: None, "library": False}
    return train_target(out / "model", corpus=[corpus], **(silent | settings | changes))


def small_ar(target: Path, out: Path, corpus: Path, **changes: Any) -> Report:
    settings = {"tokens": 4 * 64, "batch_size": 2, "length": 32, "rows": 6, "prompt": 16, "new": 8}
    silent = {"report": lambda progress: None, "library": False, "shape": TINY, "workdir": out / "work"}
    return train_ar(target, out / "model", corpus=[corpus], **(silent | settings | changes))


def small_heads(target: Path, out: Path, corpus: Path, **changes: Any) -> Report:
    settings = {"tokens": 4 * 16, "batch_size": 16, "rows": 6, "prompt": 16, "new": 8, "predict": 3, "rank": 2}
    silent = {"report": lambda progress: None, "library": False, "vocabulary": 40, "workdir": out / "work"}
    return train_heads(target, out / "model", corpus=[corpus], **(silent | settings | changes))
