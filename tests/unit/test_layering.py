"""The floors of the house stay apart: read from the imports themselves."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# What each floor may import of ours. A floor is the longest prefix that matches a module's name.
FLOORS: dict[str, set[str]] = {
    "specserve.errors": set(),
    "specserve.fingerprint": {"specserve.errors"},
    "specserve.types": {"specserve.errors"},
    "specserve.config": {"specserve.errors", "specserve.types", "specserve.zoo"},
    "specserve.constraint": {"specserve.errors", "specserve.types"},
    "specserve.filling": {"specserve.types"},
    "specserve.verify": {"specserve.errors", "specserve.types"},
    "specserve.zoo": {"specserve.errors", "specserve.fingerprint", "specserve.types"},
    "specserve.serving": {"specserve.errors", "specserve.types", "specserve.constraint", "specserve.filling"},
    "specserve.aims": {"specserve.config"},
    "specserve.v1": set(),
    "specserve.worker": set(),
}
FLOORS["specserve.engine"] = {"specserve.errors", "specserve.types", "specserve.constraint", "specserve.verify"}
FLOORS["specserve.draft"] = FLOORS["specserve.engine"] | {"specserve.engine"}
FLOORS["specserve.infill"] = FLOORS["specserve.engine"] | {"specserve.engine", "specserve.filling"}
FLOORS["specserve.train"] = FLOORS["specserve.draft"] | {
    "specserve.draft",
    "specserve.infill",
    "specserve.filling",
    "specserve.fingerprint",
    "specserve.zoo",
}
FLOORS["specserve.transport"] = {"specserve.errors", "specserve.types", "specserve.v1", "specserve.worker"}
FLOORS["specserve.planning"] = {"specserve.errors", "specserve.config", "specserve.aims", "specserve.serving"}
_BELOW_BENCH = set(FLOORS)
FLOORS["specserve.bench"] = _BELOW_BENCH | {"deployments"}
FLOORS["deployments"] = _BELOW_BENCH | {"specserve"}
FLOORS["specserve.cli"] = _BELOW_BENCH | {"specserve.bench"}
FLOORS["specserve"] = {"specserve.transport"}

HEAVY = {
    "torch": {"verify", "engine", "draft", "infill", "train", "zoo", "bench"},
    "transformers": {"engine", "draft", "infill", "train", "zoo", "bench"},
    "grpc": {"transport", "v1", "worker"},
    "simpy": {"planning"},
    "matplotlib": {"planning", "bench", "cli"},
    "ray": set(),
}
# deployments is imported lazily, by the commands that start a cluster.
MAY_DEPLOY = {"specserve/cli/up.py", "specserve/cli/demo.py"}


def _files() -> list[Path]:
    return [
        path
        for top in ("specserve", "deployments")
        for path in sorted((ROOT / top).rglob("*.py"))
        if "_pb2" not in path.name
    ]


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            if node.module == "specserve":  # `from specserve import zoo`
                yield from (f"specserve.{alias.name}" for alias in node.names)
            else:
                yield node.module


def _floor(module: str) -> str:
    while module not in FLOORS:
        module = module.rpartition(".")[0]
    return module


@pytest.mark.parametrize("path", _files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_imports_only_floors_below_its_own(path: Path) -> None:
    own = _floor(_module(path))
    for name in _imports(path):
        if name.split(".")[0] not in ("specserve", "deployments"):
            continue
        floor = _floor(name)
        if floor == "deployments" and str(path.relative_to(ROOT)) in MAY_DEPLOY:
            continue
        assert floor == own or floor in FLOORS[own], f"{own} must not import {name}"


@pytest.mark.parametrize("path", _files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_heavy_libraries_stay_on_their_floors(path: Path) -> None:
    relative = path.relative_to(ROOT)
    if relative.parts[0] == "deployments":
        return
    area = relative.parts[1].removesuffix(".py")
    for name in _imports(path):
        allowed = HEAVY.get(name.split(".")[0])
        assert allowed is None or area in allowed, f"{relative} must not import {name}"


@pytest.mark.parametrize(
    "module",
    ["specserve", "specserve.cli", "specserve.cli.generate", "specserve.cli.info", "specserve.transport.client"],
)
def test_what_a_client_needs_loads_neither_torch_nor_ray(module: str) -> None:
    assert not _loaded(f"import {module}") & {"torch", "transformers", "ray"}


@pytest.mark.parametrize("module", ["deployments.router", "specserve.draft.ngram", "deployments.drafter"])
def test_router_and_ngram_replicas_never_load_torch(module: str) -> None:
    assert not _loaded(f"import {module}") & {"torch", "transformers"}


def _loaded(statement: str) -> set[str]:
    import subprocess
    import sys

    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(out.stdout.split())
