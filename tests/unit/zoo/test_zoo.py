import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from specserve import zoo
from specserve.errors import ConfigError
from specserve.train.artefact import sha256_of
from specserve.train.target import held_out_loss

MEGABYTE = 2**20


@pytest.fixture(scope="module")
def models():
    return {name: AutoModelForCausalLM.from_pretrained(zoo.path(name), dtype=torch.float32) for name in zoo.NAMES}


def provenance(name: str) -> dict:
    return json.loads((zoo.path(name) / "provenance.json").read_text())


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(ConfigError, match="target, ar, infill; got 'taget'"):
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
    assert curve[-1] < (curve[0] / 2 if name != "infill" else curve[0] - 2)  # it hides more and more of its text


def test_sizes(models: dict):
    assert 8e6 <= sum(p.numel() for p in models["target"].parameters()) <= 12e6
    assert sum(p.numel() for p in models["ar"].parameters()) <= 1_000_000
    assert sum(p.numel() for p in models["infill"].parameters()) <= 2_000_000
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
