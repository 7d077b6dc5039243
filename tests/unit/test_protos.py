"""The committed stubs are what the protos say."""

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROTOS = sorted((ROOT / "protos").rglob("*.proto"))


def test_committed_stubs_equal_freshly_generated_ones(tmp_path: Path) -> None:
    subprocess.run(
        [ROOT / "protos" / "generate.sh", tmp_path], check=True, env={**os.environ, "PYTHON": sys.executable}
    )
    fresh = {path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("*_pb2*.py*")}
    assert len(fresh) == 6
    for path, text in fresh.items():
        assert (ROOT / path).read_text() == text, f"{path} differs: run protos/generate.sh"


@pytest.mark.parametrize("proto", PROTOS, ids=lambda p: p.name)
def test_every_field_message_and_method_has_a_comment(proto: Path) -> None:
    lines = [line.strip() for line in proto.read_text().splitlines()]
    declares = re.compile(r"^(message|enum|service|rpc|oneof)\b|^[\w<>., ]+ = \d+;$|^[A-Z_]+ = \d+;$")
    bare = [
        line
        for before, line in itertools.pairwise(lines)
        if declares.match(line) and not line.startswith(("syntax", "package")) and not before.startswith("//")
    ]
    assert bare == []
