"""Constraints as grammars of the library that compiles and follows them, llguidance.

It is 8 MB, takes 9 MB of memory, imports in 50 ms and needs no torch: so routers compile a constraint too, without a
tokenizer, and refuse a bad one before anything has started. Verifiers compile it again, for their tokenizer.
"""

from __future__ import annotations

import functools
import json
import re
from typing import TYPE_CHECKING

from specserve.errors import InvalidRequest
from specserve.types import Constraint

if TYPE_CHECKING:
    from llguidance import LLParserLimits

_LONGEST = 200  # characters of the compiler's message that are passed on

# Text that the grammar forces may be written in any tokens, as the target likes: its law is then its own law given that
# the output fits. The library would rather allow only the tokens of the tokenizer's own encoding of that text.
_HEAD = '%llguidance {"no_forcing": true}\n'


def grammar(constraint: Constraint) -> str:
    """The constraint in the library's own language. Raises InvalidRequest when a schema is not even JSON."""
    from llguidance import LLMatcher

    if constraint.json_schema is not None:
        try:  # by way of Python, so that no text can leave its place in the grammar
            schema = json.loads(constraint.json_schema)
            named = {"name": "output", "json_schema": schema}
            return json.dumps({"grammars": [{"lark_grammar": _HEAD + "start: @output"}, named]})
        except (ValueError, RecursionError) as error:
            raise refusal(constraint, f"no JSON: {error}") from error
    if constraint.regex is not None:
        rules = json.loads(LLMatcher.grammar_from_regex(constraint.regex))["grammars"][0]["lark_grammar"]
    else:  # one terminal for all: choices may begin alike
        rules = "start: CHOICE\nCHOICE: " + " | ".join(map(json.dumps, constraint.choice or ()))
    return json.dumps({"grammars": [{"lark_grammar": _HEAD + rules}]})


def limits() -> LLParserLimits:
    """The library's own bounds: the worst of 64 KiB that we found builds in 50 ms. Messages quote no parser state."""
    from llguidance import LLParserLimits

    return LLParserLimits(verbose_errors=False)


@functools.lru_cache(maxsize=64)
def check_constraint(constraint: Constraint) -> None:
    """Whether a constraint of exactly one kind can be compiled.

    Raises:
        InvalidRequest: it cannot; the bound holds the compiler's message.
    """
    from llguidance import LLMatcher

    message = LLMatcher.validate_grammar(grammar(constraint), limits=limits())
    if message:
        raise refusal(constraint, message)


def refusal(constraint: Constraint, message: str) -> InvalidRequest:
    """The compiler's message as an error about the field."""
    found = re.search(r"^error: .*", message, re.MULTILINE)  # a regex's error ends a report of several lines
    line = " ".join((found.group() if found else message).split()).replace(";", ",")
    kind = constraint.kinds[0]
    short = line if len(line) <= _LONGEST else line[: _LONGEST - 3] + "..."
    return InvalidRequest(f"constraint.{kind}", f"must compile: {short}", getattr(constraint, kind))
