"""The target as a teacher: its model, its tokenizer, and texts that it has written itself."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from specserve.errors import ConfigError
from specserve.train import loop
from specserve.train.artefact import fingerprint, quiet, sha256_of
from specserve.train.corpus import Corpus
from specserve.train.regenerate import Written, write_corpus

TEMPERATURES = (0.0, 0.0, 0.8, 1.0)
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


@dataclass(frozen=True)
class Teacher:
    """A frozen target in fp32. `ends` are the ids that end a text."""

    folder: Path
    model: Any
    tokenizer: Tokenizer
    ends: tuple[int, ...]

    @staticmethod
    def load(folder: Path, device: str) -> "Teacher":
        """From a Hugging Face directory. Raises ConfigError when it has no tokenizer.json."""
        if not (folder / "tokenizer.json").exists():
            raise ConfigError(f"target {str(folder)!r} must hold a tokenizer.json; save its fast tokenizer there")
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        with quiet():
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        model.to(loop.device_for(device)).eval()
        model.requires_grad_(False)
        end = model.generation_config.eos_token_id or 0
        return Teacher(folder, model, tokenizer, tuple(end) if isinstance(end, list) else (end,))

    @property
    def weights(self) -> dict[str, str]:
        """Hashes of its weights' files."""
        return {p.name: sha256_of(p) for p in sorted(self.folder.glob("*.safetensors"))}

    def copy_tokenizer(self, out: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        for name in _TOKENIZER_FILES:
            if (self.folder / name).exists():
                shutil.copyfile(self.folder / name, out / name)


@dataclass(frozen=True)
class Lesson:
    """Texts for one drafter: to learn from, and of held-out prompts at temperatures 0 and 1.

    `folder` is where they are kept, and whatever else is a function of them alone; `by` says how they were written.
    """

    written: Written
    checks: dict[float, Written]
    folder: Path
    by: dict[str, Any]


def have_written(
    teacher: Teacher,
    texts: Corpus,
    workdir: Path,
    *,
    rows: int,
    prompt: int,
    new: int,
    seed: int,
    resume: bool,
    report: loop.Reporter,
) -> Lesson:
    """Let the target go on from `rows` prompts of the corpus, at most `prompt` tokens each, for `new` tokens."""
    by = {"rows": rows, "prompt": prompt, "new": new, "temperatures": TEMPERATURES}
    origin = {"weights": teacher.weights, "corpus": texts.sha256, "seed": seed}
    folder = workdir / f"texts-{fingerprint({**by, **origin})}"
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)

    def write(documents: Any, name: str, count: int, temperatures: Sequence[float]) -> Written:
        return write_corpus(
            teacher.model, documents, teacher.tokenizer, folder / name, rows=count, temperatures=temperatures,
            longest=prompt, new=new, seed=seed, report=report,
        )  # fmt: skip

    written = write(texts.train, "train", rows, TEMPERATURES)
    held_out = texts.held_out or texts.train
    checks = {t: write(held_out, f"held-out-{t:g}", min(64, rows), (t,)) for t in (0.0, 1.0)}
    return Lesson(written, checks, folder, by)
