"""A small corpus, and a tiny target trained on it."""

from pathlib import Path

import pytest
from tiny_recipes import small_target

from specserve.train.artefact import Report


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 120 small modules; two of them are held out."""
    folder = tmp_path_factory.mktemp("corpus")
    for i in range(120):
        source = f'def add_{i}(x, y={i}):\n    """Add {i}."""\n    return x + y * {i}\n\n\nprint(add_{i}({i}))\n'
        (folder / f"module_{i}.py").write_text(source * 3)
    return folder


@pytest.fixture(scope="session")
def target(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    return small_target(tmp_path_factory.mktemp("target"), corpus)
