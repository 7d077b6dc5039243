"""Drafting without a model: from the request's own text, from past outputs, from tables of the target's bigrams.

Every strategy offers rows of tokens; all are merged into one trie, and of its nodes those are drafted that have
shown to be worth their verification.   (N-Grammys, 2411.03786; SuffixDecoding, 2411.04975; Token Recycling,
2408.08696; LLMA, 2304.04487; REST, 2311.08252)
"""

from specserve.draft.ngram.drafter import NgramDrafter
from specserve.draft.ngram.rows import STRATEGIES

__all__ = ["STRATEGIES", "NgramDrafter"]
