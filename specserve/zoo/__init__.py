"""The embedded models, trained by `specserve.train` on the Python standard library.

Each is an ordinary Hugging Face directory with a `provenance.json` that says how it was made. Finding them needs
neither torch nor transformers.
"""

from pathlib import Path

from specserve.errors import ConfigError

NAMES = ("target", "ar", "infill")


def path(name: str) -> Path:
    """The directory of an embedded model.

    Raises:
        ConfigError: no such model.
    """
    if name not in NAMES:
        raise ConfigError(f"embedded model must be one of {', '.join(NAMES)}; got {name!r}")
    return Path(__file__).parent / name
