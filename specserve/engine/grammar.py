"""Constrained output at the verifier: which tokens a grammar allows after each node of a draft.

The target's law under a constraint is p with the forbidden tokens taken away and renormalised, position by position;
it depends on the prefix alone, so every rule stays exact with masked p, whatever was drafted.

Nodes that the grammar forbids can never be accepted. Where the rule only asks whether a child equals the target's token
(`coupled`, `trie`, every rule at temperature 0) they and all below them are pruned before the forward pass. A rule that
judges by laws keeps them: that a sibling drawn from q was forbidden is part of what was drawn, and its rejection turns
p into the residual (p - q)+ that the next token is emitted from. Without it that token would follow p, and allowed
drafts would be emitted too often.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray
from torch import Tensor

from specserve.constraint import grammar, limits, refusal
from specserve.errors import EngineError, InvalidRequest
from specserve.types import LAW_RULES, Constraint, Draft, ModelFacts, SessionSpec, TokenIds

Bits = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Scan:
    """A draft against a grammar.

    Attributes:
        draft: what is to be verified.
        kept: for each of its nodes the index in the draft as it was sent.
        masks: tokens allowed at each row, see `verify.Case`.
    """

    draft: Draft
    kept: TokenIds
    masks: Tensor


class Grammars:
    """Compiled constraints of one replica; those least recently asked for are forgotten first.

    Args:
        tokenizer: the target's tokenizer.json. When it cannot be used, constrained sessions are refused.
        facts: of the target.
        capacity: constraints to remember.
    """

    def __init__(self, tokenizer: str | Path, facts: ModelFacts, capacity: int = 64) -> None:
        self._eos, self._capacity = facts.eos_token_ids, capacity
        self._compiled: OrderedDict[Constraint, LLMatcher] = OrderedDict()
        self._tokenizer: LLTokenizer | None = None
        self._why = "this model has no end-of-sequence token"
        self.hits = self.misses = 0
        if not self._eos:
            return
        try:
            self._tokenizer = _load(Path(tokenizer).read_text(encoding="utf-8"), facts)
        except (OSError, ValueError) as error:
            self._why = f"this model's tokenizer cannot be constrained ({error})"
            return
        self._end: Bits = np.zeros((self._tokenizer.vocab_size + 7) // 8, dtype=np.uint8)
        for token in self._eos:
            self._end[token // 8] |= 1 << token % 8

    def __len__(self) -> int:
        return len(self._compiled)

    def open(self, constraint: Constraint) -> Grammar:
        """Where an output begins.

        Raises:
            InvalidRequest: the constraint cannot be compiled, or this model cannot be constrained.
        """
        if self._tokenizer is None:
            raise InvalidRequest("constraint", f"must be unset: {self._why}", constraint.kinds[0])
        fresh = self._compiled.get(constraint)
        if fresh is None:
            self.misses += 1
            fresh = LLMatcher(self._tokenizer, grammar(constraint), log_level=0, limits=limits())
            if fresh.is_error():
                raise refusal(constraint, fresh.get_error())
            self._compiled[constraint] = fresh
            if len(self._compiled) > self._capacity:
                self._compiled.popitem(last=False)
        else:
            self.hits += 1
            self._compiled.move_to_end(constraint)
        return Grammar(fresh, self._eos, self._end)


class Grammar:
    """Where one session's output stands. Advanced by committed tokens only: a scan leaves no trace.

    Ends of sequence are kept from the library, which takes those that are also text for text: one is allowed where the
    output is complete, and then only another can follow.

    Args:
        fresh: the compiled grammar; never changed.
        eos: ids that end a sequence.
        end: the mask of them alone.
    """

    def __init__(self, fresh: LLMatcher, eos: TokenIds, end: Bits) -> None:
        self._fresh, self._eos, self._end = fresh, eos, end
        self._matcher = fresh.deep_copy()
        self._taken: list[int] = []
        self._ended = False

    def __len__(self) -> int:
        """Output tokens taken."""
        return len(self._taken)

    def advance(self, tokens: Sequence[int]) -> None:
        """Take committed tokens of the output.

        Raises:
            EngineError: one is not allowed. Masks rule that out, but for where no token was.
        """
        for token in tokens:
            if token in self._eos:
                ok = self._ended or self._matcher.is_accepting()
                self._ended = True
            else:
                ok = not self._ended and self._matcher.try_consume_tokens([token]) == 1
            if not ok:
                raise self._stuck()
            self._taken.append(token)

    def scan(self, draft: Draft, prune: bool) -> Scan:
        """Masks after the committed tokens and after every node; with `prune` without the nodes that are forbidden.

        A node after which no token is allowed counts as forbidden too. Rows at and below forbidden nodes that were not
        pruned are left unmasked: rules need a law of finite numbers there, and no output comes from it.

        Raises:
            EngineError: no token is allowed after the committed ones, or the grammar became too complex.
        """
        rows: dict[int, Bits] = {}
        self._visit(-1, self._ended, draft, _children(draft), rows)
        if -1 not in rows:
            raise self._stuck()
        kept = tuple(i for i in range(len(draft)) if i in rows) if prune else tuple(range(len(draft)))
        if len(kept) < len(draft):
            draft = _part(draft, kept)
        free = np.full_like(self._end, 0xFF)
        return Scan(draft, kept, torch.from_numpy(np.stack([rows.get(i, free) for i in (-1, *kept)])))

    def _visit(
        self, node: int, ended: bool, draft: Draft, children: dict[int, list[int]], rows: dict[int, Bits]
    ) -> None:
        """Depth first, so that each step is one token consumed and rolled back."""
        mask = self._mask(ended)
        if not mask.any():
            return
        rows[node] = mask
        for child in children.get(node, ()):
            token = draft.tokens[child]
            if token in self._eos:
                if ended or self._matcher.is_accepting():
                    self._visit(child, True, draft, children, rows)
            elif not ended:
                taken = self._matcher.try_consume_tokens([token]) == 1
                if taken:
                    self._visit(child, False, draft, children, rows)
                if self._matcher.is_error():
                    self._restore([draft.tokens[i] for i in draft.path(node)])
                elif taken:
                    self._matcher.rollback(1)

    def _mask(self, ended: bool) -> Bits:
        if ended:
            return self._end
        mask = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)[: len(self._end)]  # it pads, variously
        if self._matcher.is_error():  # nothing can follow, or it became too complex
            return np.zeros_like(self._end)
        return mask | self._end if self._matcher.is_accepting() else mask & ~self._end

    def _restore(self, path: Sequence[int]) -> None:
        """A matcher that has met an error never leaves it: begin again, up to a node of the draft."""
        self._matcher = self._fresh.deep_copy()
        self._matcher.consume_tokens([*self._taken, *path])

    def _stuck(self) -> EngineError:
        why = f" ({self._matcher.stop_reason()})" if self._matcher.is_error() else ""
        return EngineError(
            f"the constraint cannot be followed at output token {len(self) + 1}: no token of this model's vocabulary "
            f"fits, or it has become too complex{why}; change the constraint"
        )


def prunes(spec: SessionSpec) -> bool:
    """Whether forbidden nodes may be left out of the forward pass: see the top."""
    return spec.rule not in LAW_RULES or spec.sampling.temperature == 0


def _load(text: str, facts: ModelFacts) -> LLTokenizer:
    eos = list(facts.eos_token_ids)
    try:
        return LLTokenizer(text, n_vocab=facts.vocab_size, eos_token=eos)
    except ValueError:
        return LLTokenizer(text, eos_token=eos)  # ids beyond the model's logits: nothing draws them


def _children(draft: Draft) -> dict[int, list[int]]:
    children: dict[int, list[int]] = {}
    for node, parent in enumerate(draft.parents):
        children.setdefault(parent, []).append(node)
    return children


def _part(draft: Draft, kept: TokenIds) -> Draft:
    """The draft without some subtrees, and without the laws it was drawn from."""
    index = {node: i for i, node in enumerate((-1, *kept), -1)}
    return Draft(
        tuple(draft.tokens[i] for i in kept),
        tuple(index[draft.parents[i]] for i in kept),
        tuple(draft.drafters[i] for i in kept) if draft.drafters else (),
    )
