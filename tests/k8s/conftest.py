"""Overlays, built as a cluster would get them."""

import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from manifests import K8S, crd_schema_path


@pytest.fixture(scope="session")
def build() -> Callable[[Path], list[dict[str, Any]]]:
    """The manifests of a kustomization."""
    command = ["kustomize", "build"] if shutil.which("kustomize") else ["kubectl", "kustomize"]
    if shutil.which(command[0]) is None:
        pytest.skip("neither kustomize nor kubectl is installed; k8s/README.md says where to get one")

    @cache
    def built(path: Path) -> list[dict[str, Any]]:
        done = subprocess.run([*command, str(path)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return [manifest for manifest in yaml.safe_load_all(done.stdout) if manifest]

    return built


@pytest.fixture(scope="session")
def overlay(build: Callable[[Path], list[dict[str, Any]]]) -> Callable[[str], list[dict[str, Any]]]:
    """All that runs together: the overlay, and the ones that are applied beside it."""

    def all_of(name: str) -> list[dict[str, Any]]:
        beside = ("overlays/gateway", "monitoring", "weights")
        return [manifest for part in (f"overlays/{name}", *beside) for manifest in build(K8S / part)]

    return all_of


@pytest.fixture
def crd() -> Path:
    """KubeRay's schema of a RayService."""
    path = crd_schema_path()
    if path is None:
        pytest.skip("no schema of the RayService CRD: set SPECSERVE_SCHEMAS to the folder of rayservice-v*.json.gz")
    return path
