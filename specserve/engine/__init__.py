"""A Hugging Face causal language model over a token pool, and the verifier that works on it."""

from specserve.engine.chain import Chain
from specserve.engine.engine import Engine, Scores
from specserve.engine.layout import Row
from specserve.engine.verifier import Verifier

__all__ = ["Chain", "Engine", "Row", "Scores", "Verifier"]
