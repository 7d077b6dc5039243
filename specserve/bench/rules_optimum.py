"""How near k-SEQ comes to the best that any rule could accept, at the positions where its rounds began."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from specserve.bench.rules_play import Played
from specserve.engine import Engine, Row
from specserve.types import Draft, SessionSpec, SparseLaw
from specserve.verify import optimum, process
from specserve.verify.law import Fork
from specserve.verify.several import least_rho, some


def accepted(p: np.ndarray, law: SparseLaw, k: int) -> tuple[float, float]:
    """(acceptance of k-SEQ, α*) for k i.i.d. drafts of one position: exact, nothing is sampled.

    Args:
        p: the target's law, [V].
        law: what the drafts are drawn from. Ids it lacks change neither figure.
    """
    ids, q = np.array(law.ids), np.array(law.probs)
    q /= q.sum()
    on = p[ids]
    rho = least_rho(Fork(ids, on, 1.0 - float(on.sum())), q, k)
    return some(min(1.0, float(np.minimum(q, on / rho).sum())), k), optimum(on, q, k)


def shares(engine: Engine, played: Iterable[Played], k: int) -> list[tuple[int, float, float, int]]:
    """Per session its prompt, the sums of both acceptances, and over how many rounds.

    The text of a session is one draft: one pass gives the target's law at every position where a round began.
    """
    found = []
    for one in played:
        if not one.openings:
            continue
        first = one.openings[0][0]
        text = one.tokens[first : first + engine.max_nodes]
        engine.open(0, len(one.tokens))
        logits = engine.forward([Row(0, one.tokens[:first], Draft.chain(tuple(text)))]).logits
        engine.close(0)
        openings = [(at, law) for at, law in one.openings if at - first <= len(text)]
        spec = SessionSpec(one.job.sampling, len(one.job.tokens), len(one.tokens))
        rows = logits[torch.tensor([at - first for at, _ in openings], device=logits.device)]
        laws = process(rows, [spec] * len(openings), [one.tokens[:at] for at, _ in openings]).softmax(-1)
        pairs = [accepted(p, law, k) for p, (_, law) in zip(laws.double().cpu().numpy(), openings, strict=True)]
        found.append((one.job.prompt, sum(a for a, _ in pairs), sum(best for _, best in pairs), len(pairs)))
    return found
