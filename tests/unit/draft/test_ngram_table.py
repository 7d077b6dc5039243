"""Tables travel whole, and one of another target is refused at start."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import save_file

from deployments.drafter import build_drafter
from specserve.config import NgramConfig, TargetConfig
from specserve.draft.ngram import NgramDrafter
from specserve.draft.ngram.table import Table, load_table, save_table
from specserve.errors import ConfigError
from specserve.fingerprint import fingerprint
from specserve.types import Propose, Sampling, SessionSpec


def table(vocab=6, made_for="f"):
    random = np.random.default_rng(0)
    return Table(
        made_for,
        np.arange(3, dtype=np.int32),
        random.integers(0, vocab, (vocab, 2)).astype(np.int32),
        np.full((vocab, 2), 255, np.uint8),
    )


@pytest.mark.parametrize("vocab", [6, 70_000])
def test_what_was_saved_is_loaded(tmp_path, vocab):
    saved = table(vocab)
    save_table(saved, tmp_path / "t.safetensors", target="x")
    loaded = load_table(tmp_path / "t.safetensors", "f")
    assert (loaded.fingerprint, loaded.vocab_size, loaded.greedy) == ("f", vocab, None)
    for part in ("unigrams", "successors", "chances"):
        assert np.array_equal(getattr(loaded, part), getattr(saved, part))


def test_a_table_of_another_target_is_refused_with_both_fingerprints_and_what_to_do(tmp_path):
    save_table(table(), tmp_path / "t.safetensors", target="theirs")
    with pytest.raises(ConfigError, match=r"fingerprint is mine; .*made for f \(theirs\)\. `specserve train ngram"):
        load_table(tmp_path / "t.safetensors", "mine")


def test_what_is_no_table_is_refused(tmp_path):
    (tmp_path / "text").write_text("hello")
    save_numpy({"x": np.zeros(2)}, tmp_path / "other.safetensors")
    bad = table()
    bad.successors[0, 0] = 77
    save_table(bad, tmp_path / "bad.safetensors")
    for name, why in (("none", "train ngram"), ("text", "train ngram"), ("other.safetensors", "has format None")):
        with pytest.raises(ConfigError, match=why):
            load_table(tmp_path / name)
    with pytest.raises(ConfigError, match="ids must be from 0 to 5"):
        load_table(tmp_path / "bad.safetensors")


def model(folder, scale=1.0, shards=1, dtype=torch.float32):
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    weights = {f"layer.{i}": torch.full((4, 4), scale * i, dtype=dtype) for i in range(4)}
    names = list(weights)
    for shard in range(shards):
        save_file({name: weights[name] for name in names[shard::shards]}, folder / f"model-{shard}.safetensors")
    return folder


def test_a_fingerprint_is_of_the_weights_alone(tmp_path):
    own = fingerprint(model(tmp_path / "a"))
    assert own == fingerprint(model(tmp_path / "b", shards=3)), "however they are cut into files"
    others = [model(tmp_path / "c", scale=1.01), model(tmp_path / "d", dtype=torch.bfloat16)]
    assert len({own, *map(fingerprint, others)}) == 3


def test_a_directory_without_weights_has_none(tmp_path):
    with pytest.raises(ConfigError, match="must hold weights"):
        fingerprint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(ConfigError, match="is no safetensors file"):
        fingerprint(tmp_path)


def test_an_inflated_model_has_the_fingerprint_of_the_function_it_computes(tmp_path):
    folder = model(tmp_path / "a")
    (folder / "provenance.json").write_text(json.dumps({"fingerprint": "theirs"}))
    assert fingerprint(folder) == "theirs"


def test_a_replica_refuses_the_table_of_another_target_at_start(tmp_path):
    target = model(tmp_path / "target")
    file = tmp_path / "t.safetensors"
    config = NgramConfig(kind="ngram", table=str(file))
    with pytest.raises(ConfigError, match=r"^drafters\.mine\.table must be a file of `specserve train ngram`"):
        build_drafter("mine", config, TargetConfig(model=str(target)))
    save_table(table(made_for="theirs"), file)
    with pytest.raises(ConfigError, match=r"^drafters\.mine\.table must be made for the target in use"):
        build_drafter("mine", config, TargetConfig(model=str(target)))
    save_table(table(made_for=fingerprint(target)), file)
    assert isinstance(build_drafter("mine", config, TargetConfig(model=str(target))), NgramDrafter)


@pytest.mark.parametrize(
    ("strategy", "rows"), [("bigram", [[1, 0, 1], [2, 3, 0]]), ("unigram", [[4, 5, 4], [0, 1, 0]])]
)
def test_tables_are_drafted_from_in_their_order(strategy, rows):
    successors = np.array([[1, 2], [0, 3], [3, 0], [0, 1], [5, 0], [4, 0]], np.int32)
    made = Table("f", np.array([4, 0], np.int32), successors, np.full((6, 2), 99, np.uint8))
    drafter = NgramDrafter(strategies=(strategy,), table=made, rows=2, tune=False)
    drafter.submit(Propose(1, 0, (5, 0), 3, SessionSpec(Sampling(), 2, 99)))
    (reply,) = drafter.step()
    leaves = [i for i in range(len(reply.draft)) if i not in reply.draft.parents]
    assert [[reply.draft.tokens[i] for i in reply.draft.path(leaf)] for leaf in leaves] == rows
