import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from specserve import zoo
from specserve.draft.heads.model import load_heads
from specserve.draft.ngram.table import load_table
from specserve.errors import ConfigError
from specserve.fingerprint import fingerprint
from specserve.train.artefact import sha256_of
from specserve.train.target import held_out_loss

MEGABYTE = 2**20
HEADS = ("heads-r1", "heads-r4")


@pytest.fixture(scope="module")
def models():
    names = [name for name in zoo.NAMES if name not in HEADS]
    loaded = {name: AutoModelForCausalLM.from_pretrained(zoo.path(name), dtype=torch.float32) for name in names}
    return loaded | {name: load_heads(zoo.path(name)) for name in HEADS}


def provenance(name: str) -> dict:
    return json.loads((zoo.path(name) / "provenance.json").read_text())


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(ConfigError, match="target, ar, infill, heads-r1, heads-r4; got 'taget'"):
        zoo.path("taget")


def test_finding_a_model_loads_neither_torch_nor_transformers():
    code = "import sys, specserve.zoo as z; z.path('ar'); print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("name", zoo.NAMES)
def test_provenance_matches_the_files(name: str, models: dict):
    facts = provenance(name)
    assert facts["parameters"] == sum(p.numel() for p in models[name].parameters())
    assert facts["files"] == {file: sha256_of(zoo.path(name) / file) for file in facts["files"]}
    assert "model.safetensors" in facts["files"]
    curve = [loss for _, loss in facts["loss_curve"]]
    assert len(curve) <= 200
    # The filler hides more and more of its text; heads start from the target's own law.
    assert curve[-1] < (curve[0] / 2 if name in ("target", "ar") else curve[0] - 2)


def test_sizes(models: dict):
    assert 8e6 <= sum(p.numel() for p in models["target"].parameters()) <= 12e6
    assert sum(p.numel() for p in models["ar"].parameters()) <= 1_000_000
    assert sum(p.numel() for p in models["infill"].parameters()) <= 2_000_000
    assert sum(p.numel() for name in HEADS for p in models[name].parameters()) <= 2_000_000
    assert sum(f.stat().st_size for f in Path(zoo.__file__).parent.rglob("*.safetensors")) < 32 * MEGABYTE


def test_the_shipped_target_reproduces_its_held_out_loss(models: dict):
    sample = provenance("target")["sample"]
    ids = np.asarray(sample["ids"], dtype=np.uint32)
    assert held_out_loss(models["target"], ids, length=len(ids)) == pytest.approx(sample["loss"], abs=0.01)


def test_the_drafter_foresees_the_target(models: dict):
    """On text that the target writes from a new prompt; an untrained drafter never agrees."""
    tokenizer = AutoTokenizer.from_pretrained(zoo.path("target"))
    prompt = 'import os\n\n\ndef read_lines(path):\n    """Return the lines of a file as a list."""\n'
    start = torch.tensor([tokenizer(prompt)["input_ids"]])
    text = models["target"].generate(start, do_sample=False, max_new_tokens=96, min_new_tokens=96)
    with torch.no_grad():
        guess = models["ar"](input_ids=text).logits.argmax(-1)[0, start.shape[1] - 1 : -1]
    agreement = (guess == text[0, start.shape[1] :]).float().mean().item()
    assert agreement >= 0.55
    assert provenance("ar")["held_out"]["greedy_agreement"] >= 0.7


def test_a_mixture_of_heads_foresees_more_than_independent_ones():
    """Trained alike, on the same positions of the same texts."""
    one, best = (provenance(name) for name in HEADS)
    assert one["plan"] == best["plan"]
    assert one["shape"] == {**best["shape"], "rank": 1}
    assert best["held_out"]["greedy_length"] >= 1.05 * one["held_out"]["greedy_length"] > 3
    assert best["held_out"]["overlap_length"] > 1.03 * one["held_out"]["overlap_length"]


def test_the_filler_finds_the_text_that_was_there_likelier_than_other_text():
    """Than other tokens of the same program, by more than a factor of e²; an untrained model finds them alike."""
    from specserve.infill.decode import Decoder
    from specserve.infill.model import load
    from specserve.types import Gap, InfillSpec

    tokenizer = AutoTokenizer.from_pretrained(zoo.path("infill"))
    before, hidden, after = (
        tuple(tokenizer(text)["input_ids"])
        for text in ("def read_lines(path):\n    with open(path", ") as", " file:\n        return file.read()\n")
    )
    decoder = Decoder(load(zoo.path("infill")), seats=2)
    gap = InfillSpec((before, Gap(len(hidden)), after))
    other = before[::-1][: len(hidden)]
    right, wrong = (sum(decoder.density(decoder.open(gap), tokens)) for tokens in (hidden, other))
    assert right > wrong + 2


def test_the_table_is_the_shipped_targets_own(models: dict):
    file = zoo.table("ngram")
    table, facts = load_table(file, fingerprint(zoo.path("target"))), json.loads(file.with_suffix(".json").read_text())
    assert facts["sha256"] == sha256_of(file)
    tokens = torch.arange(0, table.vocab_size, 500)[:, None]
    laws = models["target"](tokens).logits[:, -1].softmax(-1)
    assert laws.argmax(-1).tolist() == table.successors[tokens[:, 0], 0].tolist()
    assert (255 * laws.max(-1).values).tolist() == pytest.approx(table.chances[tokens[:, 0], 0].tolist(), abs=1)


def test_an_unknown_table_is_answered_with_the_known_ones():
    with pytest.raises(ConfigError, match="one of ngram; got 'bigram'"):
        zoo.table("bigram")
