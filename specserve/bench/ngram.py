"""`specserve bench ngram`: strategies alone and mixed, the (k, w) grid, and the latency of drafting."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from specserve.bench.ngram_play import DEPTH, Judge, Known, Player, Real, Scripted, Tally, Text, play
from specserve.bench.ngram_texts import edits, measure_curve, referred, write
from specserve.bench.sample import quantile
from specserve.draft.ngram import STRATEGIES, NgramDrafter
from specserve.draft.ngram.drafter import DEFAULT_STRATEGIES
from specserve.draft.ngram.table import Table
from specserve.engine import Engine, Verifier
from specserve.types import Propose, Sampling, SessionSpec
from specserve.zoo.inflate import inflate

PAPERS = "context + bigram"
ROWS, WIDTHS = (1, 2, 4, 7, 10, 16), (1, 2, 4, 7, 10, 16)
Report = Callable[[str], None]
Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run.

    Args:
        max_tokens: of every text.
        temperature: of the texts; every prompt has its own seed.
        inflate: million parameters of the target whose passes are timed; 0: as it is.
        wall: also verify by that target itself, on the wall clock.
        sweep: run the (k, w) grid.
        edits: also play a scripted target that repeats the prompts with small changes.
    """

    max_tokens: int = 96
    temperature: float = 0.0
    inflate: float = 138.0
    wall: bool = False
    sweep: bool = False
    edits: bool = False
    dtype: str = "bfloat16"
    device: str = "cpu"


def run(
    target: Path, table: Table | None, sets: dict[str, Sequence[str]], plan: Plan, report: Report = lambda _: None
) -> Figures:
    """Figures as JSON-able values. `sets` are prompts by the name of their file."""
    with tempfile.TemporaryDirectory(prefix="specserve-inflated-") as folder:
        timed = Path(folder) / "target" if plan.inflate else target
        if plan.inflate:
            inflate(target, timed, int(plan.inflate * 1e6))
        engine = Engine(timed, device=plan.device, dtype=plan.dtype, slots=4096, max_nodes=max(ROWS) * max(WIDTHS))
        report("cost of verification")
        curve, points = measure_curve(engine)
        known, real, scripted = Known(curve), Real(Verifier(engine)), Scripted(engine)
        results: Figures = {"verify_ms": {str(size): 1e3 * s for size, s in points}, "sets": {}}

        def measure(name: str, texts: Sequence[Text], judge: Judge | None, sweep: bool = False) -> None:
            def say(line: str) -> None:
                report(f"{name}, {line}")

            figures: Figures = {"arms": arms(texts, table, known, say)}
            results["sets"][name] = figures
            cells = grid(texts, table, known, say) if sweep else []
            if cells:
                figures["grid"] = cells
            if plan.wall and judge is not None:
                figures["wall"] = walls(texts, table, judge, cells, say)

        for name, prompts in sets.items():
            report(f"{name}, the target writes {len(prompts)} texts")
            texts = write(target, prompts, plan.max_tokens, plan.temperature, device=plan.device)
            measure(name, texts, real, plan.sweep)
            if plan.edits:
                edited = edits(texts)
                measure(f"{name}, edited", edited, scripted)
                measure(f"{name}, edited reference", referred(edited), None)
    results["latency"] = latency(table)
    results["threads"] = torch.get_num_threads()
    return results


def arms(texts: Sequence[Text], table: Table | None, judge: Judge, report: Report) -> Figures:
    """Prompt lookup (one row of 10), every strategy alone, the paper's mix and ours, all but the first tuned."""
    made, off = {}, play(texts, None, judge)
    for name in ("prompt lookup", *STRATEGIES, PAPERS, "mix"):
        drafter = _drafter(name, table)
        tally = play(texts, drafter, judge, tuned=name != "prompt lookup")
        made[name] = {**_figures(tally, off), "by_strategy": _shares(drafter)}
        report(f"{name}: {tally.tokens_per_call:.2f} tokens per call")
    return made


def grid(texts: Sequence[Text], table: Table | None, judge: Judge, report: Report) -> list[Figures]:
    """The paper's mix, context rows of one token's agreement first and then the bigram's, at every (k, w); the largest
    says where in it paths ended."""
    off, cells = play(texts, None, judge), []
    for rows in ROWS:
        for width in WIDTHS:
            tally = play(texts, _fixed(rows, width, table), judge)
            cells.append({"k": rows, "w": width, **_figures(tally, off)})
            report(f"(k, w) = ({rows}, {width}): {tally.tokens_per_call:.2f} tokens per call")
    cells[-1]["taken"] = tally.taken
    return cells


def walls(texts: Sequence[Text], table: Table | None, judge: Judge, cells: list[Figures], report: Report) -> Figures:
    """Wall clock with real passes, text by text in turns: off, prompt lookup, both mixes, the grid's three best."""
    players = {"off": Player(None, judge), "prompt lookup": Player(_drafter("prompt lookup", table), judge)}
    players |= {name: Player(_drafter(name, table), judge, tuned=True) for name in (PAPERS, "mix")}
    for cell in sorted(cells, key=lambda cell: -cell["speed_up"])[:3]:
        players[f"({cell['k']}, {cell['w']})"] = Player(_fixed(cell["k"], cell["w"], table), judge)
    order = list(players.values())
    for i, text in enumerate(texts):
        for player in order[i % len(order) :] + order[: i % len(order)]:
            player.play(text)
        report(f"wall clock: {i + 1} of {len(texts)} texts")
    return {name: _figures(player.tally, players["off"].tally) for name, player in players.items()}


def latency(
    table: Table | None, *, sessions: int = 16, rows: int = 10, width: int = 10, context: int = 2000
) -> Figures:
    """Milliseconds of one batch, p50 and p95 of 300: a fixed k × w batch, and the default mix that is priced.

    The texts are words of a small dictionary: what stands in them repeats as in prose or code.
    """
    draw = random.Random(0)
    words = [[draw.randrange(500) for _ in range(draw.randint(2, 6))] for _ in range(80)]
    texts = [[token for _ in range(context) for token in draw.choice(words)] for _ in range(sessions)]
    figures: Figures = {"sessions": sessions, "context": context}
    kinds = {
        f"fixed {rows} x {width}": _fixed(rows, width, table),
        f"priced, {width} deep": NgramDrafter(table=table, max_tokens=width),
    }
    for name, drafter in kinds.items():
        spec, took, nodes = SessionSpec(Sampling(), 100, 1 << 20), [], 0
        for id, text in enumerate(texts):
            drafter.submit(Propose(id, 0, tuple(text[:context]), 0, spec))
        drafter.step()
        for turn in range(-20, 300):
            at = context + 2 * (turn + 20)
            for id, text in enumerate(texts):
                drafter.submit(Propose(id, at, tuple(text[at : at + 2]), width, None, 0, 0.01))
            start = time.perf_counter()
            replies = drafter.step()
            if turn >= 0:
                took.append(time.perf_counter() - start)
                nodes += sum(len(reply.draft) for reply in replies if hasattr(reply, "draft"))
        took.sort()
        figures[name] = {
            "ms_p50": 1e3 * median(took),
            "ms_p95": 1e3 * quantile(took, 0.95),
            "nodes": nodes / len(took) / sessions,
        }
    return figures


def _drafter(name: str, table: Table | None) -> NgramDrafter:
    """Of an arm."""
    if name == "prompt lookup":
        return NgramDrafter(strategies=("context",), rows=1, context_rows=1, max_tokens=10, tune=False)
    strategies = {PAPERS: ("context", "bigram"), "mix": DEFAULT_STRATEGIES}.get(name, (name,))
    return NgramDrafter(strategies=strategies, table=table, max_tokens=DEPTH)


def _fixed(rows: int, width: int, table: Table | None) -> NgramDrafter:
    return NgramDrafter(
        strategies=("context", "bigram"),
        table=table,
        rows=rows,
        context_rows=rows,
        max_ngram=1,
        max_tokens=width,
        tune=False,
    )


def _figures(tally: Tally, off: Tally) -> Figures:
    return {
        "tokens_per_call": tally.tokens_per_call,
        "nodes_per_call": tally.nodes / tally.calls,
        "speed_up": tally.tokens_per_s / off.tokens_per_s,
        "draft_ms_per_call": 1e3 * tally.draft_s / tally.calls,
    }


def _shares(drafter: NgramDrafter) -> Figures:
    """Of each strategy: drafted and accepted tokens."""
    stats = drafter.stats()
    return {
        name: [stats[f"{name}_drafted_tokens"], stats[f"{name}_accepted_tokens"]]
        for name in STRATEGIES
        if f"{name}_drafted_tokens" in stats
    }
