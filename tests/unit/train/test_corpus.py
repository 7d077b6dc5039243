import gzip
import json
from pathlib import Path

import pytest

from specserve.errors import ConfigError
from specserve.train.corpus import is_held_out, load


def test_the_split_depends_on_names_alone_and_holds_out_about_two_percent():
    names = [f"stdlib/module_{i}.py" for i in range(10_000)]
    held_out = {name for name in names if is_held_out(name)}
    assert 150 < len(held_out) < 250
    assert held_out == {name for name in reversed(names) if is_held_out(name)}
    # Pinned: another split would make the shipped held-out figures meaningless.
    assert [i for i, name in enumerate(names[:200]) if is_held_out(name)] == [7, 70, 156, 184]


def test_the_standard_library_is_enough_and_leaves_out_its_tests():
    corpus = load()
    names = [d.name for d in (*corpus.train, *corpus.held_out)]
    assert "stdlib/json/decoder.py" in names
    assert not [name for name in names if {"test", "tests", "site-packages"} & set(name.split("/"))]
    assert corpus.held_out
    assert sum(source.bytes for source in corpus.sources) > 5_000_000


def test_two_loads_are_the_same_corpus(corpus: Path):
    first, second = (load([corpus], library=False) for _ in range(2))
    assert first == second
    assert first.sha256 == second.sha256


def test_lines_of_a_compressed_file_are_documents(tmp_path: Path):
    file = tmp_path / "notes.jsonl.gz"
    with gzip.open(file, "wt") as stream:
        stream.write(json.dumps({"name": "a", "text": "one\n"}) + "\n")
    (document,) = load([file], library=False).train
    assert document.text == "one\n"


@pytest.mark.parametrize("content", ['{"name": "a"}', "not json", "[]"])
def test_a_bad_line_is_named(tmp_path: Path, content: str):
    file = tmp_path / "notes.jsonl.gz"
    with gzip.open(file, "wt") as stream:
        stream.write(content + "\n")
    with pytest.raises(ConfigError, match=r"notes\.jsonl\.gz:1: want"):
        load([file], library=False)


def test_other_paths_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="want a folder or"):
        load([tmp_path / "missing.bin"], library=False)
    with pytest.raises(ConfigError, match="must hold some text"):
        load([tmp_path], library=False)
