"""Under a grammar every rule emits exactly the masked target's law, whatever a drafter without a grammar drafts."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from enumeration import DRAFTERS, Table, Weighted, emitted_law, joint_error, table
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from specserve.engine.grammar import Grammar, Grammars
from specserve.errors import EngineError
from specserve.types import LAW_RULES, Constraint, Draft, ModelFacts
from specserve.verify import RULES
from specserve.verify.transform import restrict

END, VOCAB = 0, 3  # the end of the sequence, "a" and "b"
PATTERN = "(a|bb?)(ab?)?"


@pytest.fixture(autouse=True)
def _walk_by_depth(monkeypatch):
    """The walk then draws only at rows it visits, so that their draws can be enumerated."""
    monkeypatch.setattr("specserve.verify.coupled._AT_ONCE", 0)


@pytest.fixture(scope="module")
def grammar(tmp_path_factory) -> Callable[[], Grammar]:
    """Opens the grammar, where an output begins."""
    path: Path = tmp_path_factory.mktemp("three") / "tokenizer.json"
    tokenizer = Tokenizer(models.BPE(vocab={"</s>": END, "a": 1, "b": 2}, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(False, False), decoders.ByteLevel()
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.save(str(path))
    grammars = Grammars(path, ModelFacts("three", VOCAB, 64, (END,)))
    return lambda: grammars.open(Constraint(regex=PATTERN))


def masked(p: Table, grammar: Callable[[], Grammar]) -> Table:
    """The law that is promised: p without what the grammar forbids, renormalised. Below forbidden tokens p itself."""
    found = {}
    for prefix, law in p.items():
        state = grammar()
        try:
            state.advance(prefix)
        except EngineError:
            found[prefix] = law
            continue
        left = np.where(restrict(torch.zeros(1, VOCAB), [(0, state.scan(Draft(), True).masks)])[0] == 0, law, 0.0)
        found[prefix] = left / left.sum()
    return found


def scanned(drafter: Weighted, grammar: Callable[[], Grammar], prune: bool) -> Weighted:
    for weight, draft in drafter:
        yield weight, grammar().scan(draft, prune).draft


@pytest.mark.parametrize("rule", RULES)
def test_the_joint_law_is_the_masked_target_s(rule, grammar):
    """Algebra, no sampling. Rules that look at tokens alone get pruned drafts, the others whole ones."""
    rng = np.random.default_rng(21)
    for vocab, length, drafter in DRAFTERS[rule](rng):
        if vocab != VOCAB:
            continue
        p = masked(table(rng, VOCAB, length, zeros=0), grammar)
        out = emitted_law(p, scanned(drafter, grammar, rule not in LAW_RULES), rule)
        assert joint_error(out, p, VOCAB, length + 1) <= 1e-12


def without(draft: Draft, kept: tuple[int, ...]) -> Draft:
    """The mutant: forbidden nodes left out of what a rule that judges by laws is told was drawn."""
    n = len(kept)
    assert draft.laws is not None
    laws = tuple(draft.laws[i] for i in kept)
    return Draft(draft.tokens[:n], draft.parents[:n], draft.drafters[:n], laws, (kept,) if kept else ())


@pytest.mark.parametrize("rule", ["rejection", "block", "kseq", "recursive", "traversal"])
def test_pruning_what_was_drawn_would_be_wrong_for_rules_that_judge_by_laws(rule, grammar):
    """One chain: a forbidden token's rejection is what makes the next one follow the residual."""
    rng = np.random.default_rng(22)
    (_, length, drafter) = [s for s in DRAFTERS["rejection"](rng) if s[0] == VOCAB][-1]
    p = masked(table(rng, VOCAB, length, zeros=0), grammar)
    pruned = [(weight, without(draft, grammar().scan(draft, True).kept)) for weight, draft in drafter]
    assert joint_error(emitted_law(p, pruned, rule), p, VOCAB, length + 1) > 0.01
