"""The shape of a Llama-like model, and a fresh model of it in stock Hugging Face code."""

from dataclasses import dataclass
from typing import Any

from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM


@dataclass(frozen=True)
class Shape:
    vocab: int
    hidden: int
    layers: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int = 2048

    def model(self, *, end: int | list[int]) -> Any:
        """A LlamaForCausalLM with tied embeddings, its weights from torch's current random state.

        Args:
            end: the id (or ids) that end a text; the first begins one too.
        """
        first = end[0] if isinstance(end, list) else end
        config = LlamaConfig(
            vocab_size=self.vocab,
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            intermediate_size=self.ffn,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_dim,
            max_position_embeddings=self.context,
            tie_word_embeddings=True,
            bos_token_id=first,
            eos_token_id=end,
            pad_token_id=None,
        )
        model = LlamaForCausalLM(config)
        model.generation_config = GenerationConfig(bos_token_id=first, eos_token_id=end, pad_token_id=first)
        return model
