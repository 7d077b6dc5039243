"""Which model a directory holds, told without loading it."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

from specserve.errors import ConfigError

_SAMPLE = 4096  # bytes of every tensor
INFLATED = "fingerprint"
"""Key of provenance.json under which a model inflated by specserve.zoo says whose function it computes."""


def fingerprint(model_dir: Path) -> str:
    """Sixteen hex digits of the model's weights: names, types, shapes and the first 4 KiB of every tensor.

    Sharding, file names and metadata do not matter; a fine-tuned model has another fingerprint. Reads some MB even of
    the largest model. An inflated model has the fingerprint of the one whose function it computes.

    Raises:
        ConfigError: no weights, or a file that is none.
    """
    provenance = model_dir / "provenance.json"
    if provenance.is_file() and isinstance(said := json.loads(provenance.read_text()).get(INFLATED), str):
        return said
    tensors: dict[str, bytes] = {}
    for file in sorted(model_dir.glob("*.safetensors")):
        tensors |= _samples(file)
    for file in sorted(model_dir.glob("pytorch_model*.bin")) if not tensors else ():
        with file.open("rb") as stream:
            head = stream.read(_SAMPLE)
            stream.seek(-min(_SAMPLE, file.stat().st_size), 2)
            tensors[file.name] = b"%d" % file.stat().st_size + head + stream.read()
    if not tensors:
        raise ConfigError(f"{model_dir} must hold weights (*.safetensors or pytorch_model*.bin); it has none")
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + b"\0" + tensors[name])
    return digest.hexdigest()[:16]


def _samples(file: Path) -> dict[str, bytes]:
    """Of every tensor its type, shape and first bytes. A safetensors file is: u64 length, JSON header, data."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length))
            found = {}
            for name, tensor in header.items():
                if name != "__metadata__":
                    start, end = tensor["data_offsets"]
                    stream.seek(8 + length + start)
                    kind = json.dumps([tensor["dtype"], tensor["shape"]]).encode()
                    found[name] = kind + stream.read(min(_SAMPLE, end - start))
            return found
    except (OSError, struct.error, ValueError, KeyError, TypeError, MemoryError) as error:
        raise ConfigError(f"{file} is no safetensors file: {error}") from error
