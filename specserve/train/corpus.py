"""The text that models are trained on: named documents, split by a hash of their names.

The default corpus is the standard library of the running interpreter, so that anyone can make the same weights
from nothing but a Python installation.
"""

import gzip
import hashlib
import json
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from specserve.errors import ConfigError

SUFFIXES = frozenset({".py", ".txt", ".md"})
# Tests are not how people write programs; the two data packages are tables and escaped prose; the rest is not
# part of the library, or differs from machine to machine.
LEFT_OUT = frozenset({"test", "tests", "idle_test", "encodings", "pydoc_data", "site-packages", "__pycache__"})
HELD_OUT_ONE_IN = 50


@dataclass(frozen=True)
class Document:
    name: str
    text: str


@dataclass(frozen=True)
class Source:
    """One origin of text, as it is written to the provenance file."""

    name: str
    licence: str
    documents: int
    bytes: int


@dataclass(frozen=True)
class Corpus:
    train: tuple[Document, ...]
    held_out: tuple[Document, ...]
    sources: tuple[Source, ...]

    @property
    def sha256(self) -> str:
        """Hash over the names and texts of all documents; it fixes the split too."""
        digest = hashlib.sha256()
        for document in (*self.train, *self.held_out):
            for part in (document.name, document.text):
                data = part.encode()
                digest.update(len(data).to_bytes(8, "little") + data)
        return digest.hexdigest()

    def describe(self) -> dict[str, object]:
        return {
            "sources": [asdict(source) for source in self.sources],
            "sha256": self.sha256,
            "train_documents": len(self.train),
            "held_out_documents": len(self.held_out),
            "split": f"held out where sha256(name) mod {HELD_OUT_ONE_IN} == 0",
        }


def is_held_out(name: str) -> bool:
    """About 2 % of all names, the same ones on every machine."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % HELD_OUT_ONE_IN == 0


def load(extra: Sequence[Path] = (), *, library: bool = True) -> Corpus:
    """The standard library of the running interpreter, and whatever `extra` names.

    Args:
        extra: `*.jsonl.gz` files of `{"name", "text"}` lines, or folders of .py, .txt and .md files.
        library: whether the standard library is part of it.
    Raises:
        ConfigError: a path is neither, a line is not such an object, or there is no text at all.
    """
    found: list[tuple[str, str, tuple[Document, ...]]] = []
    if library:
        root, version = Path(sysconfig.get_paths()["stdlib"]), sysconfig.get_python_version()
        documents = tuple(_folder(root, {".py"}, "stdlib"))
        found.append((f"Python {version} standard library", "PSF-2.0", documents))
    found += [(path.name, "as given by its owner", tuple(_read(path))) for path in extra]
    everything = [document for _, _, documents in found for document in documents]
    if not everything:
        raise ConfigError("the corpus must hold some text; name a folder or file that does")
    return Corpus(
        train=tuple(d for d in everything if not is_held_out(d.name)),
        held_out=tuple(d for d in everything if is_held_out(d.name)),
        sources=tuple(
            Source(name, licence, len(documents), sum(len(d.text.encode()) for d in documents))
            for name, licence, documents in found
        ),
    )


def _read(path: Path) -> Iterator[Document]:
    if path.is_dir():
        yield from _folder(path, SUFFIXES, path.name)
    elif path.name.endswith(".jsonl.gz"):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    item = json.loads(line)
                    yield Document(f"{path.stem}/{item['name']}", item["text"])
                except (ValueError, KeyError, TypeError) as cause:
                    raise ConfigError(f'{path}:{number}: want {{"name", "text"}}, got {line[:60]!r}') from cause
    else:
        raise ConfigError(f"corpus: want a folder or a *.jsonl.gz file, got {str(path)!r}")


def _folder(root: Path, suffixes: Iterable[str], prefix: str) -> Iterator[Document]:
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root)
        if path.suffix not in suffixes or LEFT_OUT & set(name.parts) or name.name.startswith("_sysconfigdata"):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if text.strip():
            yield Document(f"{prefix}/{name.as_posix()}", text)
