"""The drafter's side of the rules that need q: truncate, renormalise, and draw from exactly that."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from specserve.types import Draft, SessionSpec, SparseLaw, TokenIds
from specserve.verify.noise import Purpose, key, log_arrivals, substream
from specserve.verify.transform import support

MOST = 64  # ids in a law: what travels per drafted token


def draw_sparse(
    logits: Tensor,
    specs: Sequence[SessionSpec],
    histories: Sequence[Sequence[int]],
    draws: Sequence[tuple[int, int]],
    *,
    drafter: str = "",
    count: int = 1,
) -> tuple[list[TokenIds], list[SparseLaw]]:
    """Draw drafts after the same sampling transform as the target's, and the laws they were drawn from.

    Randomness is keyed (seed, committed length, drafter, index): a position that is drafted again in a later round
    must be drawn afresh, because what became of its first draft already decided something.

    Args:
        logits: the drafter's, [N, V].
        specs: N; temperature 0 gives the argmax with a law of one id.
        histories: tokens before each row's position, hypothesised ones included, N.
        draws: per row the committed length of the session (not of the history) and the index of this draw among all
            that this drafter makes for the session in this round.
        drafter: its name, so that two drafters of one session draw independently.
        count: siblings to draw without replacement; 1 draw gives i.i.d. drafts when every chain has its own index.
    Returns:
        per row the tokens in the order drawn (fewer than `count` where the law has fewer), and the law of the first:
        at most 64 ids, largest first, with probabilities that are fp32 numbers.
    """
    values, ids = support(logits, specs, histories)
    top, at = values.topk(min(MOST, values.shape[1]), -1)
    ids = at if ids is None else ids.gather(1, at)
    cold = [i for i, spec in enumerate(specs) if spec.sampling.temperature == 0]
    if cold:
        top[cold, 1:] = -torch.inf
    probs = top.double().softmax(-1).float()
    salt = zlib.crc32(drafter.encode())
    keys = [
        substream(substream(key(spec.sampling.seed, Purpose.DRAFT, length), salt), index)
        for spec, (length, index) in zip(specs, draws, strict=True)
    ]
    order = (probs.log() - log_arrivals(keys, ids)).topk(min(count, ids.shape[1]), -1).indices
    tokens = ids.gather(1, order).tolist()
    chosen = probs.gather(1, order).tolist()
    drawn = [tuple(t for t, p in zip(row, ps, strict=True) if p > 0) for row, ps in zip(tokens, chosen, strict=True)]
    laws = []
    for row_ids, row_probs in zip(ids.tolist(), probs.tolist(), strict=True):
        n = sum(p > 0 for p in row_probs)
        laws.append(SparseLaw(tuple(row_ids[:n]), tuple(row_probs[:n])))
    return drawn, laws


def merge_chains(chains: Sequence[Sequence[int]], laws: Sequence[Sequence[SparseLaw]], drafter: str = "") -> Draft:
    """Sequences that one drafter drew, as one tree: equal beginnings share nodes, `Draft.chains` keeps what was drawn.

    Args:
        chains: K sequences in the order drawn.
        laws: the law of each of their tokens. Tokens drawn from different laws are never merged.
    """
    index: dict[tuple[int, int, SparseLaw], int] = {}
    paths: list[TokenIds] = []
    for chain, its_laws in zip(chains, laws, strict=True):
        node, path = -1, []
        for token, law in zip(chain, its_laws, strict=True):
            node = index.setdefault((node, token, law), len(index))
            path.append(node)
        paths.append(tuple(path))
    return Draft(
        tokens=tuple(token for _, token, _ in index),
        parents=tuple(parent for parent, _, _ in index),
        drafters=(drafter,) * len(index),
        laws=tuple(law for _, _, law in index),
        chains=tuple(paths),
    )
