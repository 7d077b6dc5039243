"""What a verdict costs beside the forward pass that it judges, in one interleaved run."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from specserve.engine import Engine, Row
from specserve.types import Draft, Sampling, SessionSpec, SparseLaw, TokenIds
from specserve.verify import Case, decide, draw_sparse, top_coupled
from specserve.zoo.inflate import inflate

SESSIONS, NODES, VOCAB = 8, 8, 32_000
_COMMITTED = 128  # tokens each session holds already
_VARIANTS = 4  # batches of other laws, taken in turns

# name -> rule, temperature, K
TIMED = {
    "coupled, T=0": ("coupled", 0.0, 1),
    "coupled, T=1": ("coupled", 1.0, 1),
    "rejection": ("rejection", 1.0, 1),
    "block": ("block", 1.0, 1),
    "kseq, K=8": ("kseq", 1.0, 8),
}

Batch = tuple[Tensor, list[Case]]


def measure(target: Path, millions: float, repeats: int, report: Callable[[str], None]) -> dict[str, Any]:
    """Median milliseconds of `decide` for each rule, and of a bf16 forward pass of `target` made that large.

    The pass scores the same number of sessions and nodes. Its vocabulary is the target's own; the logits judged are
    of 32,000 tokens, fp32, Zipf-like.
    """
    batches = {name: [batch(variant, *how) for variant in range(_VARIANTS)] for name, how in TIMED.items()}
    with tempfile.TemporaryDirectory(prefix="specserve-inflated-") as folder:
        parameters = inflate(target, Path(folder) / "target", int(millions * 1e6))
        engine = Engine(Path(folder) / "target", dtype="bfloat16", slots=SESSIONS * 256, max_nodes=NODES)
        seconds: dict[str, list[float]] = {name: [] for name in ("forward", *TIMED)}
        forward = _forward(engine)
        for turn in range(-2, repeats):
            for name, run in (("forward", forward), *((n, _decision(b, turn)) for n, b in batches.items())):
                took = run()
                if turn >= 0:
                    seconds[name].append(took)
            if turn > 0 and turn % 10 == 9:
                report(f"verify time: {turn + 1} of {repeats} turns")
    own = 1e3 * median(seconds.pop("forward"))
    figures = {name: {"ms": (ms := 1e3 * median(took)), "share_of_forward": ms / own} for name, took in seconds.items()}
    shape = {"sessions": SESSIONS, "nodes": NODES, "vocab": VOCAB, "threads": torch.get_num_threads()}
    return {"forward_ms": own, "forward_parameters": parameters, "turns": repeats, **shape, "rules": figures}


def batch(variant: int, rule: str, temperature: float, k: int) -> Batch:
    """Logits [Σ rows, V] and cases with 8 nodes each. Drafts come from the target's laws, blurred."""
    random = torch.Generator().manual_seed(variant)
    rank = torch.arange(1, VOCAB + 1, dtype=torch.float32)
    rows = SESSIONS * (1 + NODES)
    order = torch.rand(rows, VOCAB, generator=random).argsort(-1)
    logits = torch.empty(rows, VOCAB).scatter_(1, order, (-1.2 * rank.log()).expand(rows, -1))
    blurred = logits + 0.5 * torch.randn(rows, VOCAB, generator=random)
    cases = []
    for i in range(SESSIONS):
        spec = SessionSpec(Sampling(temperature=temperature, seed=SESSIONS * variant + i), _COMMITTED, 1024, rule)
        tokens = tuple(torch.randint(VOCAB, (_COMMITTED,), generator=random).tolist())
        mine = blurred[i * (1 + NODES) : (i + 1) * (1 + NODES)]
        draft = _shared(mine, spec, tokens) if rule == "coupled" else _drawn(mine, spec, tokens, k)
        cases.append(Case(spec, tokens, draft))
    return logits, cases


def _shared(logits: Tensor, spec: SessionSpec, tokens: TokenIds) -> Draft:
    """A chain under the target's own noise."""
    drafted: tuple[int, ...] = ()
    for row in logits[:NODES]:
        drafted += (int(top_coupled(row[None], [spec], [(*tokens, *drafted)], 1)),)
    return Draft.chain(drafted, "ar")


def _drawn(logits: Tensor, spec: SessionSpec, tokens: TokenIds, k: int) -> Draft:
    """k i.i.d. chains, grown level by level until the tree that they make has all its nodes."""
    drafted: list[int] = []
    parents: list[int] = []
    laws: list[SparseLaw] = []
    paths: list[tuple[int, ...]] = [()] * k
    for depth in range(NODES):
        for i, path in enumerate(paths):
            if len(path) < depth:
                continue
            parent = path[-1] if path else -1
            ((token,),), (law,) = draw_sparse(
                logits[None, 1 + parent], [spec], [tokens], [(len(tokens), depth * k + i)]
            )
            same = (n for n, edge in enumerate(zip(parents, drafted, strict=True)) if edge == (parent, token))
            node = next(same, len(drafted))
            if node == NODES:
                continue
            if node == len(drafted):
                drafted.append(token)
                parents.append(parent)
                laws.append(law)
            paths[i] = (*path, node)
    chains = tuple(path for path in paths if path)
    return Draft(tuple(drafted), tuple(parents), ("ar",) * NODES, tuple(laws), chains)


def _forward(engine: Engine) -> Callable[[], float]:
    """A pass over the same number of sessions, one pending token and a chain of 8 each."""
    vocab = engine.facts().vocab_size
    for session in range(SESSIONS):
        engine.open(session, _COMMITTED + 1)
        engine.forward([Row(session, [(7 * i + session) % vocab for i in range(_COMMITTED)], logits=False)])
    rows = [Row(session, [session % vocab], Draft.chain(tuple(range(1, 1 + NODES)))) for session in range(SESSIONS)]

    def run() -> float:
        scores = engine.forward(rows)
        for session in range(SESSIONS):
            engine.truncate(session, _COMMITTED)
        return scores.seconds

    return run


def _decision(batches: Sequence[Batch], turn: int) -> Callable[[], float]:
    logits, cases = batches[turn % len(batches)]

    def run() -> float:
        start = time.perf_counter()
        decide(logits, cases)
        return time.perf_counter() - start

    return run
