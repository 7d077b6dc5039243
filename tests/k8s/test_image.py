"""The image runs as nobody in particular, from pinned parts that fit the package's own bounds."""

import re
import tomllib

from manifests import K8S, ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

DOCKERFILE = (K8S / "image/Dockerfile").read_text()


def _stages() -> dict[str, tuple[str, str]]:
    """{stage: (what it starts from, its text)}"""
    parts = re.split(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, flags=re.MULTILINE)
    return {name: (base, text) for base, name, text in zip(parts[1::3], parts[2::3], parts[3::3], strict=True)}


def _constraints() -> dict[str, str]:
    lines = (K8S / "image/constraints.txt").read_text().splitlines()
    pins = (line.split("==") for line in lines if not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pins}


def test_there_is_a_target_for_cpu_and_one_for_cuda_and_both_run_unprivileged() -> None:
    stages = _stages()
    for target in ("cpu", "cuda"):
        base, text = stages[target]
        assert base == "runtime"
        assert "USER" not in text
    user = re.findall(r"^USER (\S+)$", stages["runtime"][1], flags=re.MULTILINE)
    assert user == ["1000:1000"]


def test_the_pods_run_as_the_images_user() -> None:
    for path in (K8S / "base/rayservice.yaml", *K8S.glob("overlays/*/workers.yaml")):
        assert "runAsUser: 1000\n" in path.read_text(), path


def test_every_base_is_pinned_to_a_patch_version() -> None:
    (python,) = re.findall(r"^ARG PYTHON=(\S+)$", DOCKERFILE, flags=re.MULTILINE)
    assert re.match(r"\d+\.\d+\.\d+-", python)
    stages = _stages()
    for base, _ in stages.values():
        assert base == "python:${PYTHON}" or base in stages


def test_what_is_installed_is_pinned_within_the_packages_bounds() -> None:
    pins = _constraints()
    pins["torch"], *others = re.findall(r"torch==([\d.]+)", DOCKERFILE)
    assert set(others) == {pins["torch"]}, "both targets take one torch"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in map(Requirement, project["dependencies"]):
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


def test_the_cluster_says_the_ray_that_the_image_has() -> None:
    text = (K8S / "base/rayservice.yaml").read_text()
    assert f"rayVersion: {_constraints()['ray']}\n" in text


def test_no_weights_are_copied_in() -> None:
    copied = re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, flags=re.MULTILINE)
    assert [line.split()[:-1] for line in copied] == [
        ["pyproject.toml", "README.md", "LICENSE"],
        ["specserve"],
        ["deployments"],
        ["k8s/image/constraints.txt"],
    ]
