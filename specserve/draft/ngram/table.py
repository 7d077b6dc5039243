"""Tables of a target's unigrams and bigrams: what `specserve train ngram` writes and drafters read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from specserve.draft.ngram.history import SEAM, Ids
from specserve.errors import ConfigError

_FORMAT = "specserve-ngram-1"


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """What the target says without any context.

    Args:
        fingerprint: of the target, see `fingerprint.fingerprint`.
        unigrams: tokens, likeliest first, [u].
        successors: likeliest next tokens after each single token, best first, [V, k].
        chances: their probabilities, in 255ths, [V, k] uint8.
        greedy: of the first k' successors, the token itself and what greedy decoding goes on with, [V, k', w'].
    """

    fingerprint: str
    unigrams: Ids
    successors: Ids
    chances: NDArray[np.uint8]
    greedy: Ids | None = None

    @property
    def vocab_size(self) -> int:
        return len(self.successors)


def save_table(table: Table, file: Path, **facts: object) -> None:
    """Write one safetensors file, with the fingerprint and `facts` in its metadata. Ids below 65,536 take 2 bytes."""
    narrow = np.uint16 if table.vocab_size <= 1 << 16 else np.int32
    tensors = {
        "unigrams": table.unigrams.astype(narrow),
        "successors": table.successors.astype(narrow),
        "chances": table.chances,
    }
    if table.greedy is not None:
        tensors["greedy"] = table.greedy.astype(narrow)
    told = {"format": _FORMAT, "fingerprint": table.fingerprint, **facts}
    save_file(tensors, file, metadata={"ngram": json.dumps(told)})  # one entry: several have no fixed order


def load_table(file: Path, fingerprint: str | None = None) -> Table:
    """Read a table, and refuse it unless it was made for the target with this fingerprint (None: for any).

    Raises:
        ConfigError: no such file, not a table, not sound, or another target's.
    """
    try:
        with safe_open(file, framework="numpy") as stored:
            facts = json.loads((stored.metadata() or {}).get("ngram", "{}"))
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  # no mapping
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(f"table must be a file that `specserve train ngram` wrote; {file}: {error}") from error
    if facts.get("format") != _FORMAT or not {"unigrams", "successors", "chances"} <= tensors.keys():
        raise ConfigError(
            f"table must be a file that `specserve train ngram` wrote, of format {_FORMAT}; "
            f"{file} has format {facts.get('format')!r}"
        )
    made_for = facts.get("fingerprint", "")
    if fingerprint is not None and made_for != fingerprint:
        raise ConfigError(
            f"table must be made for the target in use, whose fingerprint is {fingerprint}; {file} was made for "
            f"{made_for} ({facts.get('target', 'unnamed')}). `specserve train ngram --target DIR --out FILE` makes one"
        )
    ids = {name: tensor.astype(np.int32) for name, tensor in tensors.items() if name != "chances"}
    table = Table(made_for, ids["unigrams"], ids["successors"], tensors["chances"], ids.get("greedy"))
    vocab = table.vocab_size
    shapes = table.successors.ndim == 2 == table.chances.ndim and (table.greedy is None or table.greedy.ndim == 3)
    if not shapes or not all(part.size == 0 or 0 <= part.min() <= part.max() < vocab for part in ids.values()):
        raise ConfigError(f"table {file} is damaged: ids must be from 0 to {vocab - 1}")
    return table


def with_seam(part: Ids) -> Ids:
    """Rows of SEAM for ids that have none: index -1 finds it, so SEAM leads to SEAM. [V + 1, ...]"""
    return np.concatenate([part, np.full((1, *part.shape[1:]), SEAM, np.int32)])
