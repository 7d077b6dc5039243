"""The registry of rules, and `decide`, which sends every case to its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial

from torch import Tensor

from specserve.errors import InvalidRequest, VerifyError
from specserve.types import Draft, SessionSpec
from specserve.verify import chain, sample, several
from specserve.verify.case import Case, Outcome, Rule
from specserve.verify.coupled import coupled
from specserve.verify.noise import Purpose
from specserve.verify.tossed import Tossed
from specserve.verify.transform import Prefix, restrict
from specserve.verify.traversal import traversal

RULES: dict[str, Rule] = {
    "coupled": coupled,
    "rejection": Tossed("rejection", chain.rejection, one_chain=True),
    "block": Tossed("block", chain.block, one_chain=True),
    "kseq": Tossed("kseq", several.kseq, one_law=True),
    "recursive": Tossed("recursive", several.recursive),
    "recursive-wor": Tossed("recursive-wor", partial(several.recursive, replacement=False), distinct=True),
    "traversal": Tossed("traversal", traversal),
    "traversal-wor": Tossed("traversal-wor", partial(traversal, replacement=False), distinct=True),
    # Deterministic drafts at any temperature: one y ~ p per prefix, from noise that no drafter shares. Equal beginnings
    # are merged into one prefix; a draw per draft would favour the longest match.
    "trie": partial(coupled, draw=partial(sample.best, purpose=Purpose.RESIDUAL)),
}


def lookup_rule(name: str) -> Rule:
    """The rule of that name.

    Raises:
        InvalidRequest: there is none.
    """
    rule = RULES.get(name)
    if rule is None:
        raise InvalidRequest("speculation.rule", "must be one of " + ", ".join(RULES), name)
    return rule


def check_draft(spec: SessionSpec, draft: Draft) -> None:
    """Refuse a draft that the session's rule would not be exact for: before it is put into a batch.

    Raises:
        VerifyError: laws are missing, or the draft has the wrong shape; the message says what would do.
    """
    rule = lookup_rule(spec.rule)
    if isinstance(rule, Tossed) and spec.sampling.temperature > 0:
        rule.check(draft)


def decide(logits: Tensor, cases: Sequence[Case]) -> list[Outcome]:
    """Give the verdict on a batch of drafts.

    Args:
        logits: [Σ(1 + len(draft_i)), V], any float type; the cases' rows follow one another. Row 0 of a case is
            the target's law after its last committed token, row 1 + j the law after node j.
        cases: B sessions; each is judged by its own `spec.rule`, under its own `masks`.
    Returns:
        B outcomes, in order.
    Raises:
        VerifyError: rows and cases do not fit together, or a draft does not suit its rule (see `check_draft`).
        InvalidRequest: no rule has that name.
    """
    starts: list[int] = []
    rows = 0
    for case in cases:
        starts.append(rows)
        rows += case.rows
    if logits.ndim != 2 or rows != logits.shape[0]:
        raise VerifyError(f"logits must be [{rows}, V], a row per case and per node; got {list(logits.shape)}")
    masks = [(start, c.masks[: c.rows]) for start, c in zip(starts, cases, strict=True) if c.masks is not None]
    allowed = restrict(logits, masks) if masks else logits
    by_rule: dict[str, list[int]] = {}
    for i, case in enumerate(cases):
        by_rule.setdefault(case.spec.rule, []).append(i)
    outcomes: list[Outcome] = [Outcome((), -1)] * len(cases)
    for name, mine in by_rule.items():
        found = lookup_rule(name)(allowed, [cases[i] for i in mine], [starts[i] for i in mine])
        for i, outcome in zip(mine, found, strict=True):
            outcomes[i] = outcome
    return _with_logprobs(allowed, logits, cases, starts, outcomes)


def _with_logprobs(
    logits: Tensor, raw: Tensor, cases: Sequence[Case], starts: Sequence[int], outcomes: list[Outcome]
) -> list[Outcome]:
    """Add what was asked for, of every emitted token, in one pass."""
    asked = [i for i, c in enumerate(cases) if c.spec.sampling.logprobs is not None and outcomes[i].fault is None]
    if not asked:
        return outcomes
    rows: list[int] = []
    specs: list[SessionSpec] = []
    histories: list[Prefix] = []
    tokens: list[int] = []
    for i in asked:
        case, outcome = cases[i], outcomes[i]
        emitted = (*(case.draft.tokens[node] for node in outcome.accepted), outcome.token)
        rows += [starts[i] + 1 + node for node in (-1, *outcome.accepted)]
        specs += [case.spec] * len(emitted)
        histories += [Prefix(case.tokens, emitted[:n]) for n in range(len(emitted))]
        tokens += emitted
    found = iter(sample.logprobs(logits[rows], specs, histories, tokens, raw[rows]))
    for i in asked:
        n = len(outcomes[i].accepted) + 1
        outcomes[i] = dataclasses.replace(outcomes[i], logprobs=tuple(next(found) for _ in range(n)))
    return outcomes
