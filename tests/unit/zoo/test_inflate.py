import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen3Config

from specserve import zoo
from specserve.errors import ConfigError
from specserve.zoo.inflate import inflate

SIZES = {
    "vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
}  # fmt: skip


@pytest.mark.parametrize("config", [LlamaConfig(**SIZES, tie_word_embeddings=True), Qwen3Config(**SIZES)])
@pytest.mark.parametrize("times", [1.5, 40])
def test_a_larger_model_has_the_same_logits(config, times: float, tmp_path: Path):
    torch.manual_seed(0)
    small = AutoModelForCausalLM.from_config(config).eval()
    small.save_pretrained(tmp_path / "small")
    asked = int(times * sum(p.numel() for p in small.parameters()))
    written = inflate(tmp_path / "small", tmp_path / "large", asked)
    large = AutoModelForCausalLM.from_pretrained(tmp_path / "large").eval()
    assert asked <= written == sum(p.numel() for p in large.parameters()) < 1.2 * asked + 100_000
    assert large.config.num_hidden_layers <= 16
    ids = torch.randint(128, (2, 40))
    with torch.no_grad():
        torch.testing.assert_close(large(ids).logits, small(ids).logits, rtol=1e-4, atol=1e-5)


def test_the_shipped_target_inflated_writes_the_same_text(tmp_path: Path):
    written = inflate(zoo.path("target"), tmp_path, 24_000_000)
    small, large = (
        AutoModelForCausalLM.from_pretrained(p, dtype=torch.float32) for p in (zoo.path("target"), tmp_path)
    )
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer("def mean(values):\n", return_tensors="pt")["input_ids"]
    texts = [model.generate(ids, do_sample=False, max_new_tokens=48).tolist() for model in (small, large)]
    assert texts[0] == texts[1]
    note = json.loads((tmp_path / "provenance.json").read_text())
    assert note["parameters"] == written >= 24_000_000
    assert note["source"]["parameters"] == note["source_parameters"]


def test_another_architecture_is_refused(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ConfigError, match=r"needs a Llama-shaped model.*got 'gpt2'"):
        inflate(tmp_path, tmp_path / "out", 10)
