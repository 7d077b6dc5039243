"""The maths of acceptance: tensors in, verdicts out, randomness keyed by (seed, purpose, position)."""

from specserve.verify.case import Case, Outcome, Rule
from specserve.verify.optimum import optimum
from specserve.verify.rules import RULES, check_draft, decide, lookup_rule
from specserve.verify.sample import coupled_candidates, sample, top_coupled
from specserve.verify.sparse import draw_sparse, merge_chains
from specserve.verify.transform import Prefix, process

__all__ = [
    "RULES",
    "Case",
    "Outcome",
    "Prefix",
    "Rule",
    "check_draft",
    "coupled_candidates",
    "decide",
    "draw_sparse",
    "lookup_rule",
    "merge_chains",
    "optimum",
    "process",
    "sample",
    "top_coupled",
]
