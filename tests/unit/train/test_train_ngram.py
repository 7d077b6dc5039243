"""The table of a small model against the definition, one token at a time."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from specserve.draft.ngram.table import load_table
from specserve.errors import ConfigError
from specserve.fingerprint import fingerprint
from specserve.train import ngram
from specserve.train.ngram import train_ngram

VOCAB = 37


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(config)
    path = tmp_path_factory.mktemp("target")
    model.save_pretrained(path)
    return path


def make(target, out, **options):
    options = {"successors": 5, "greedy_rows": 2, "greedy_depth": 3, "unigrams": 4, "batch": 8, **options}
    return train_ngram(target, out, report=lambda _: None, **options)


@pytest.mark.parametrize("first", [None, 3])
def test_the_table_is_what_the_model_says_after_every_single_token(target, tmp_path, first):
    make(target, tmp_path / "t.safetensors", first=first)
    table = load_table(tmp_path / "t.safetensors", fingerprint(target))
    model = AutoModelForCausalLM.from_pretrained(target).eval()
    for token in range(VOCAB):
        ids = [token] if first is None else [first, token]
        with torch.no_grad():
            law = model(torch.tensor([ids])).logits[0, -1].softmax(-1)
            assert table.successors[token].tolist() == law.topk(5).indices.tolist()
            assert table.chances[token].tolist() == [round(255 * p) for p in law.topk(5).values.tolist()]
            for row, successor in enumerate(table.successors[token, :2].tolist()):
                text = [*ids, successor]
                for _ in range(2):
                    text.append(int(model(torch.tensor([text])).logits[0, -1].argmax()))
                assert table.greedy[token, row].tolist() == text[len(ids) :]


def test_unigrams_lie_nearest_to_the_mean_in_the_metric_of_the_input_embeddings(target, tmp_path):
    make(target, tmp_path / "t.safetensors")
    model = AutoModelForCausalLM.from_pretrained(target)
    output = model.get_output_embeddings().weight.detach().double().numpy()
    metric = np.cov(model.get_input_embeddings().weight.detach().double().numpy().T)
    away = output - output.mean(0)
    expected = sorted(range(VOCAB), key=lambda v: away[v] @ metric @ away[v])[:4]
    assert load_table(tmp_path / "t.safetensors").unigrams.tolist() == expected


def test_an_interrupted_run_goes_on_behind_its_last_batch(target, tmp_path, monkeypatch):
    whole, again = tmp_path / "whole.safetensors", tmp_path / "again.safetensors"
    make(target, whole)
    looked = []

    def look(model, tokens, *rest, true=ngram._look):
        if len(looked) == 2:
            raise KeyboardInterrupt
        looked.append(tokens.tolist())
        return true(model, tokens, *rest)

    monkeypatch.setattr(ngram, "_look", look)
    with pytest.raises(KeyboardInterrupt):
        make(target, again)
    monkeypatch.undo()
    steps = []
    original = ngram._look
    monkeypatch.setattr(
        ngram, "_look", lambda model, tokens, *rest: steps.append(tokens[0].item()) or original(model, tokens, *rest)
    )
    make(target, again)
    assert steps == [16, 24, 32]
    assert again.read_bytes() == whole.read_bytes()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("again")] != []
    assert not (tmp_path / "again.parts").exists()


def test_beside_the_table_stands_how_it_was_made(target, tmp_path):
    made = make(target, tmp_path / "t.safetensors")
    facts = json.loads((tmp_path / "t.json").read_text())
    assert facts["fingerprint"] == fingerprint(target)
    assert facts["settings"]["successors"] == 5
    assert 0 <= made.figures["first_successor"] <= made.figures["any_successor"] <= 1


@pytest.mark.parametrize(
    ("option", "value", "bound"),
    [("successors", 0, "1 and 255; got 0"), ("greedy_rows", 6, "0 and 5; got 6"), ("batch", 0, "1 and 65536; got 0")],
)
def test_a_number_out_of_bounds_is_refused(target, tmp_path, option, value, bound):
    with pytest.raises(ConfigError, match=f"{option} must be between {bound}"):
        make(target, tmp_path / "t.safetensors", **{option: value})
