"""The peers: `transformers` on the same weights in the same run, one prompt at a time (assisted modes take no more)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from specserve.bench.load import Workload
from specserve.bench.sample import Sample


class _Clock:
    """A streamer that notes when each token came. The first call brings the prompt."""

    def __init__(self) -> None:
        self.arrivals: list[float] = []
        self._started = False

    def put(self, value: Any) -> None:
        if self._started:
            self.arrivals += [time.perf_counter()] * value.numel()
        self._started = True

    def end(self) -> None:
        pass


class Transformers:
    """`generate` plain, with an assistant model, and with prompt lookup.

    Args:
        target, assistant: Hugging Face directories; no assistant, no such arm.
        lookup_tokens: `prompt_lookup_num_tokens`.
    """

    def __init__(
        self,
        target: Path,
        assistant: Path | None,
        *,
        dtype: str,
        assistant_dtype: str,
        threads: int,
        lookup_tokens: int,
    ) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        torch.set_num_threads(threads)
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        self._tokenizer = AutoTokenizer.from_pretrained(target)
        self._model = AutoModelForCausalLM.from_pretrained(target, dtype=dtype).eval()
        self.arms: dict[str, dict[str, Any]] = {"transformers generate": {}}
        if assistant is not None:
            model = AutoModelForCausalLM.from_pretrained(assistant, dtype=assistant_dtype).eval()
            self.arms["transformers assistant_model"] = {"assistant_model": model}
        self.arms["transformers prompt_lookup"] = {"prompt_lookup_num_tokens": lookup_tokens}

    def generate(self, arm: str, prompt: str, load: Workload) -> Sample:
        """One generation, timed as our client times ours."""
        import torch

        clock = _Clock()
        options: dict[str, Any] = {"max_new_tokens": load.max_tokens, "do_sample": load.temperature > 0}
        if load.temperature > 0:
            options |= {"temperature": load.temperature, "top_k": 0, "top_p": 1.0}
        if load.ignore_eos:
            options["eos_token_id"] = None
        start = time.perf_counter()
        inputs = self._tokenizer(prompt, return_tensors="pt")
        if load.temperature > 0:
            torch.manual_seed(load.seed)
        with torch.inference_mode():
            out = self._model.generate(**inputs, **options, **self.arms[arm], streamer=clock)
        ids = tuple(out[0, inputs["input_ids"].shape[1] :].tolist())
        wall = time.perf_counter() - start
        return Sample(ids, tuple(t - start for t in clock.arrivals[: len(ids)]), wall)

    def logits_after(self, prompt: str, ids: Sequence[int]) -> Any:
        """The target's logits, [V], after the prompt and `ids`."""
        import torch

        inputs = self._tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            return self._model(torch.cat([inputs, torch.tensor([list(ids)], dtype=inputs.dtype)], 1)).logits[0, -1]
