"""Tokens to text as they come: never half a character, and in the end exactly the tokenizer's own decoding."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_LOST = "\N{REPLACEMENT CHARACTER}"
_MAX_HELD = 8  # tokens that one character may take where the decoder does not say when it is whole


class Detokenizer(Protocol):
    """Text of one session's emitted tokens. Special tokens have none."""

    def push(self, token: int) -> str:
        """The text that is certain with this token; it may lag by part of a character."""

    def flush(self) -> str:
        """What is left. Bytes that never became a character read U+FFFD, as in the tokenizer's own decoding."""


class Detokenizers:
    """Makes detokenizers for one tokenizer; they share its tables. Every call costs O(new tokens)."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        decoder = json.loads(tokenizer.decoder.__getstate__()) if tokenizer.decoder is not None else {}
        added = tokenizer.get_added_tokens_decoder()
        special = frozenset(id for id, token in added.items() if token.special)
        self._new: Callable[[Sequence[int]], Detokenizer]
        if decoder.get("type") == "ByteLevel":
            table = _ByteTable(tokenizer, special)
            self._new = lambda prompt: _ByteLevel(table)
        else:
            words = _Words(tokenizer, special, byte_fallback="ByteFallback" in json.dumps(decoder))
            self._new = lambda prompt: _Windowed(words, prompt)

    def new(self, prompt: Sequence[int]) -> Detokenizer:
        """A detokenizer for what follows `prompt`: a first word keeps its leading space."""
        return self._new(prompt)


class _ByteTable(dict[int, bytes]):
    """Token id -> bytes under GPT-2's printable alphabet, filled as tokens are seen."""

    def __init__(self, tokenizer: Tokenizer, special: frozenset[int]) -> None:
        self._tokenizer, self._special = tokenizer, special
        printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        others = (byte for byte in range(256) if byte not in set(printable))
        self._bytes = {chr(byte): byte for byte in printable}
        self._bytes.update((chr(0x100 + n), byte) for n, byte in enumerate(others))

    def __missing__(self, token: int) -> bytes:
        word = None if token in self._special else self._tokenizer.id_to_token(token)
        if word is None:
            data = b""
        elif all(char in self._bytes for char in word):
            data = bytes(self._bytes[char] for char in word)
        else:  # an added token that was never spelled in the alphabet
            data = word.encode()
        self[token] = data
        return data


class _ByteLevel:
    """Byte-level BPE: the text is the UTF-8 of the tokens' bytes."""

    def __init__(self, table: _ByteTable) -> None:
        self._table = table
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self._utf8.decode(self._table[token])

    def flush(self) -> str:
        return self._utf8.decode(b"", final=True)


class _Words:
    """What `_Windowed` must know of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer, special: frozenset[int], byte_fallback: bool) -> None:
        self.tokenizer, self.special = tokenizer, special
        self.bytes: frozenset[int] = frozenset()
        if byte_fallback:
            ids = (tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in range(256))
            self.bytes = frozenset(id for id in ids if id is not None)
        self._texts: dict[int, str] = {}

    def text(self, token: int) -> str:
        """The text of one token that stands alone."""
        text = self._texts.get(token)
        if text is None:
            text = self._texts[token] = self.decode([token])
        return text

    def decode(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens))

    def silent(self, token: int) -> bool:
        return token in self.special or self.tokenizer.id_to_token(token) is None


class _Windowed:
    """Any other decoder (Metaspace, byte fallback, WordPiece): decode a token after the one before it, and
    show what it added. A run of byte tokens is shown when it has ended: only then is it known to be text."""

    def __init__(self, words: _Words, prompt: Sequence[int]) -> None:
        self._words = words
        self._held: list[int] = []
        self._before: list[int] = []
        for token in reversed(prompt[-16:]):
            if token not in words.bytes and not words.silent(token):
                self._before = [token]
                break

    def push(self, token: int) -> str:
        words = self._words
        if words.silent(token):
            return ""
        self._held.append(token)
        if token in words.bytes:
            return ""
        text = self._added()
        if text.endswith(_LOST) and len(self._held) < _MAX_HELD and not words.bytes:
            return ""
        self._before, self._held = [token], []
        return text

    def flush(self) -> str:
        text = self._added() if self._held else ""
        self._held = []
        return text

    def _added(self) -> str:
        known = len(self._words.text(self._before[0])) if self._before else 0
        return self._words.decode(self._before + self._held)[known:]
