"""At start: does the model through the pool compute what it computes by itself?

An architecture that ignores the positions or the mask it is given, or builds its own, would write other text
than `generate` without any error. A few forward passes find out: two branches in a tree, a commit of the second
one, a ragged batch, a chunk, single tokens and chains are compared with the model's plain pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from specserve.engine.layout import Row
from specserve.engine.load import text_config
from specserve.types import Draft

if TYPE_CHECKING:
    from specserve.engine.engine import Engine

# Of the logits' size, mean over the laws compared. Two layers differ by 0 to 0.7 % in bfloat16, 0.1 % in float16.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.03, torch.float16: 0.01}
_LONGEST = 64


class Mismatch(Exception):
    """The two disagree."""


def selfcheck(engine: Engine, model: Any) -> None:
    """Raises Mismatch. Uses sessions -1 and -2; text longer than a sliding window where that is short enough."""
    window = getattr(text_config(model.config), "sliding_window", None) or 0
    length = min(window + 8 if window and window + 8 <= _LONGEST else 12, engine.facts().context_len)
    if length < 10:
        return
    size, half = engine.facts().vocab_size, length // 2
    one = [(7919 * i + 3) % size for i in range(length)]
    two = one[:half] + [(6841 * i + 5) % size for i in range(half, length)]
    law = {1: _plain(model, one), 2: _plain(model, two)}
    # What another shape alone changes in the plain pass: deep half-precision models differ by more than shallow ones.
    noise = [_distance(got, law[1][i]) for i, got in enumerate(_plain(model, one[:half]))]
    errors: list[float] = []

    def compare(got: Tensor, text: int, position: int) -> None:
        errors.append(_distance(got, law[text][position]))

    for session in (-1, -2):
        engine.open(session, length)
    branches = Draft((one[half], one[half + 1], two[half], two[half + 1]), (-1, 0, -1, 2), ("", "", "", ""))
    scores = engine.forward([Row(-1, one[:half], branches)]).logits
    for got, (text, position) in zip(scores, [(1, -1), (1, 0), (1, 1), (2, 0), (2, 1)], strict=True):
        compare(got, text, half + position)
    engine.commit(-1, (2, 3))
    compare(engine.forward([Row(-1, two[half + 2 : half + 3])]).logits[0], 2, half + 2)
    ragged = [Row(-1, two[half + 3 : half + 4]), Row(-2, one[:3])]
    for got, (text, position) in zip(engine.forward(ragged).logits, [(2, half + 3), (1, 2)], strict=True):
        compare(got, text, position)
    engine.forward([Row(-2, one[3:half], logits=False)])
    compare(engine.forward([Row(-2, one[half : half + 1])]).logits[0], 1, half)
    for sessions in ([-1, -2], [-2]):
        texts = {-1: two, -2: one}
        held = {s: engine.held(s) for s in sessions}
        tokens = torch.tensor([texts[s][held[s]] for s in sessions], device=engine.device)
        with engine.chain(sessions, 1) as chain:
            laws = chain.step(tokens)
        for got, session in zip(laws, sessions, strict=True):
            compare(got, 2 if session == -1 else 1, held[session])
    error, bound = sum(errors) / len(errors), max(TOLERANCE[model.dtype], 4 * sum(noise) / len(noise))
    if not error <= bound:
        raise Mismatch(f"logits differ by {error:.1%} of their size, {bound:.1%} can be rounding")


def _distance(got: Tensor, want: Tensor) -> float:
    """Difference of two laws' logits, relative to their size; a constant in all logits counts in neither."""
    return float((got.float() - want).norm() / (want - want.mean()).norm().clamp_min(1e-9))


def _plain(model: Any, text: list[int]) -> Tensor:
    """The laws after every token of a text, [n, V], by the model alone."""
    ids = torch.tensor([text], device=model.device)
    logits: Tensor = model(input_ids=ids, use_cache=False).logits[0]
    return logits.float()
