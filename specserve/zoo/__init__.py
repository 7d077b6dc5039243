"""The embedded models, trained by `specserve.train` on the Python standard library.

Each has a `provenance.json` that says how it was made, and all but the heads are ordinary Hugging Face directories.
Finding them needs neither torch nor transformers.
"""

from pathlib import Path

from specserve.errors import ConfigError

TABLES = ("ngram",)
NAMES = ("target", "ar", "infill", "heads-r1", "heads-r4")


def path(name: str) -> Path:
    """The directory of an embedded model.

    Raises:
        ConfigError: no such model.
    """
    if name not in NAMES:
        raise ConfigError(f"embedded model must be one of {', '.join(NAMES)}; got {name!r}")
    return Path(__file__).parent / name


def table(name: str) -> Path:
    """The file of an embedded table, made for the embedded target.

    Raises:
        ConfigError: no such table.
    """
    if name not in TABLES:
        raise ConfigError(f"embedded table must be one of {', '.join(TABLES)}; got {name!r}")
    return Path(__file__).parent / name / "table.safetensors"
