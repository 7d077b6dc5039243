"""Fixtures: tiny models as directories, and engines that must end empty."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tinymodels import ARCHITECTURES, build

from specserve.engine import Engine


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny models gain nothing from more, and wait long at barriers on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of a tiny model, by architecture; made once."""
    root = tmp_path_factory.mktemp("models")
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = build(root / name, *ARCHITECTURES[name])
        return made[name]

    return get


@pytest.fixture
def make_engine(model_dir: Callable[[str], Path]) -> Iterator[Callable[..., Engine]]:
    """Engines by architecture. Afterwards every session must be closed and every slot free."""
    made: list[Engine] = []

    def make(name: str = "llama", **options: Any) -> Engine:
        made.append(Engine(model_dir(name), **{"slots": 1024, "max_nodes": 16, "trace": False, **options}))
        return made[-1]

    yield make
    for engine in made:
        engine.check_integrity()
        assert engine.sessions == set()
        assert engine.stats()["slots_used"] == 0
        assert engine.stats()["slots_free"] == engine.stats()["slots"]
