"""Every shipped config passes the strict check; what it turns away is in tests/k8s/test_typos.py."""

from pathlib import Path

import pytest

from deployments.launch import CONFIGS, load
from specserve.errors import ConfigError


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_a_shipped_config_is_right_in_every_key(path: Path) -> None:
    assert load(path)["applications"][0]["name"] == "specserve"


@pytest.mark.parametrize("text", ["", "[]", "applications: []", "applications: {", "target: {}"])
def test_what_is_no_config_is_a_config_error_that_names_the_file(text: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"odd\.yaml"):
        load(path)
