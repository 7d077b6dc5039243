"""A tiny pair on disk: a random target whose tokens are letters, and a drafter that is the target, shaken."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import AutoModelForCausalLM, LlamaConfig

VOCAB = 48


@dataclass(frozen=True)
class Folders:
    target: Path
    drafter: Path


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Folders]:
    path = tmp_path_factory.mktemp("pair")
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        initializer_range=0.3,
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = AutoModelForCausalLM.from_config(config)
        model.generation_config.eos_token_id = 2
        model.save_pretrained(path / "target")
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.03 * torch.randn_like(weight))
        model.save_pretrained(path / "drafter")
    tokenizer = Tokenizer(models.BPE(vocab={chr(ord("A") + i): i for i in range(VOCAB)}, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(path / "target" / "tokenizer.json"))
    yield Folders(path / "target", path / "drafter")
    torch.set_num_threads(threads)
