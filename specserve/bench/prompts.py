"""Prompt files: one JSON object a line, plain or gzipped."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from specserve.errors import ConfigError

_KEYS = ("prompt", "question", "text")


def load(path: Path, limit: int | None = None) -> list[str]:
    """The prompts of a JSON-lines file: keys `prompt`, `question`, `text`, or the first of `turns`.

    Raises:
        ConfigError: the file cannot be read or a line holds no prompt; names the line.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        lines = [line for line in raw.decode().splitlines() if line.strip()][:limit]
    except (OSError, UnicodeDecodeError, EOFError) as error:
        raise ConfigError(f"prompts {path}: {error}") from error
    return [_prompt(line, f"{path}:{number}") for number, line in enumerate(lines, 1)]


def _prompt(line: str, where: str) -> str:
    try:
        item = json.loads(line)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where}: is no JSON: {error}") from error
    if isinstance(item, dict):
        for key in _KEYS:
            if isinstance(item.get(key), str) and item[key]:
                return str(item[key])
        if isinstance(item.get("turns"), list) and item["turns"]:
            return str(item["turns"][0])
    raise ConfigError(f"{where}: must hold a non-empty string under one of {', '.join(_KEYS)}, or turns")
