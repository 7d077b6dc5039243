"""`specserve bench rules`: every verification rule on the same prompts and seeds, beside what was published."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from specserve.bench import rules_optimum, rules_time
from specserve.bench.rules_intervals import Bootstrap, Values, interval
from specserve.bench.rules_play import Cost, Job, Pair, Played, Way
from specserve.errors import ConfigError
from specserve.types import Sampling, TokenIds

Report = Callable[[str], None]

K, L = 8, 8
CHAIN, REJECTION, BLOCK = "coupled chain", "rejection", "block"
KSEQ, RECURSIVE, TRAVERSAL = "kseq", "recursive", "traversal"
TREE, TREE_LIKE_KSEQ = "coupled tree", "coupled tree of kseq's size"

FIXED = (
    Way(REJECTION, "rejection", depth=L),
    Way(CHAIN, "coupled", depth=L),
    Way(BLOCK, "block", depth=L),
    Way(KSEQ, "kseq", K, L),
    Way(RECURSIVE, "recursive", K, L),
    Way(TRAVERSAL, "traversal", K, L),
)
SHAPES = tuple(
    Way(f"{branches} branches, depth {depth}", "coupled", branches, depth)
    for branches in (2, 3, 4, 8, 16)
    for depth in (6, L)
)
NAMES = (*(way.name for way in FIXED), TREE, TREE_LIKE_KSEQ)
RATIOS = (
    (KSEQ, REJECTION),
    (BLOCK, REJECTION),
    (TREE, CHAIN),
    (TREE_LIKE_KSEQ, KSEQ),
    (CHAIN, REJECTION),
    (RECURSIVE, REJECTION),
    (TRAVERSAL, REJECTION),
    (TREE, KSEQ),
)


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What to run.

    Args:
        samples: per prompt, each with its own seed.
        batch: sessions at once.
        pilot: jobs on which the shape of the trees is chosen, with seeds of their own.
        turns: of the measurement of verify time; 0 leaves it out.
        millions: parameters of the forward pass that verify time is a share of.
        only: names of the ways to run; none for all.
    """

    max_tokens: int = 64
    temperature: float = 1.0
    samples: int = 1
    batch: int = 8
    pilot: int = 16
    turns: int = 40
    millions: float = 138.0
    only: tuple[str, ...] = ()


def run(
    target: Path,
    drafter: Path,
    prompts: Sequence[Sequence[str]],
    plan: Plan,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    report: Report = lambda _: None,
) -> dict[str, Any]:
    """All figures, as JSON-able values. `prompts` holds the texts of each prompt file."""
    pair = Pair(target, drafter, sessions=plan.batch, device=device, dtype=dtype)
    encoded, left_out = encode(target, prompts, pair.room(plan.max_tokens))
    ways = [way for way in FIXED if not plan.only or way.name in plan.only]
    shapes: dict[Way, float] = {}
    if not plan.only or {TREE, TREE_LIKE_KSEQ} & set(plan.only):
        shapes, kseq_nodes = search(pair, encoded, plan, report)
        best = max(shapes, key=lambda way: shapes[way])
        # As deep as k-SEQ's chains at most, and never more nodes than those came to once merged.
        trees = {TREE: best, TREE_LIKE_KSEQ: dataclasses.replace(best, nodes=int(kseq_nodes))}
        ways += [dataclasses.replace(way, name=name) for name, way in trees.items() if name in (plan.only or trees)]
    played, costs = play_all(pair, ways, jobs(encoded, plan), plan, report)
    results: dict[str, Any] = {
        "ways": {way.name: figures(way, played[way.name], costs[way.name], len(encoded)) for way in ways},
        "ratios": ratios(played, len(encoded)),
        "shapes": {way.name: value for way, value in shapes.items()},
        "batch": plan.batch,
        "prompts": {"used": len(encoded), "too_long": left_out},
    }
    if KSEQ in played:
        report(f"the optimum, at the positions where rounds of {KSEQ} began")
        results["optimum"] = share_of_optimum(pair, played[KSEQ], len(encoded))
    if plan.turns:
        del pair  # its threads and memory are the measurement's now
        results["verify"] = rules_time.measure(target, plan.millions, plan.turns, report)
    return results


def encode(target: Path, prompts: Sequence[Sequence[str]], room: int) -> tuple[list[TokenIds], int]:
    """Token ids, the files' prompts in turns so that every beginning is a mixture; and how many were too long."""
    from tokenizers import Tokenizer

    path = target / "tokenizer.json"
    if not path.exists():
        raise ConfigError(f"target must have a tokenizer.json; {target} has none")
    tokenizer = Tokenizer.from_file(str(path))
    turns = [text for i in range(max(map(len, prompts))) for file in prompts for text in file[i : i + 1]]
    encoded = [tuple(tokenizer.encode(text).ids) for text in turns]
    fitting = [ids for ids in encoded if 0 < len(ids) <= room]
    if not fitting:
        raise ConfigError(f"prompts must have at most {room} tokens; none of {len(encoded)} has")
    return fitting, len(encoded) - len(fitting)


def jobs(encoded: Sequence[TokenIds], plan: Plan, first_seed: int = 0) -> list[Job]:
    """Every prompt `samples` times."""
    return [
        Job(i, tokens, Sampling(temperature=plan.temperature, seed=first_seed + sample * len(encoded) + i))
        for sample in range(plan.samples)
        for i, tokens in enumerate(encoded)
    ]


def search(pair: Pair, encoded: Sequence[TokenIds], plan: Plan, report: Report) -> tuple[dict[Way, float], float]:
    """Tokens per round of every shape of tree, and the nodes per round of k-SEQ, on the pilot's jobs."""
    some = jobs(encoded, plan, first_seed=1 << 32)[: plan.pilot]
    kseq = next(way for way in FIXED if way.name == KSEQ)
    played, _ = play_all(pair, [kseq, *SHAPES], some, plan, lambda line: report(f"pilot: {line}"))
    shapes = {way: total(played[way.name], "emitted") / total(played[way.name], "rounds") for way in SHAPES}
    return shapes, total(played[KSEQ], "nodes") / total(played[KSEQ], "rounds")


def play_all(
    pair: Pair, ways: Sequence[Way], todo: Sequence[Job], plan: Plan, report: Report
) -> tuple[dict[str, list[Played]], dict[str, Cost]]:
    """Every way on every job. They take turns batch by batch, so that drift of the machine falls on all alike."""
    played: dict[str, list[Played]] = {way.name: [] for way in ways}
    costs = {way.name: Cost() for way in ways}
    for turn, start in enumerate(range(0, len(todo), plan.batch)):
        some = todo[start : start + plan.batch]
        for way in (*ways[turn % len(ways) :], *ways[: turn % len(ways)]):
            played[way.name] += pair.play(way, some, plan.max_tokens, costs[way.name])
        report(f"{min(start + plan.batch, len(todo))} of {len(todo)} sessions of each of {len(ways)} ways")
    return played, costs


def figures(way: Way, played: Sequence[Played], cost: Cost, prompts: int) -> dict[str, Any]:
    """Of one way: tokens per round with its interval, and what a round costs."""
    rounds, emitted = total(played, "rounds"), total(played, "emitted")
    return {
        "way": dataclasses.asdict(way),
        "rounds": rounds,
        "tokens_per_round": interval(efficiency(played, Bootstrap(prompts), prompts)),
        "nodes_per_round": total(played, "nodes") / rounds,
        "first_accepted": total(played, "started") / rounds,
        "ms_per_token": 1e3 * (cost.draft_s + cost.verify_s) / emitted,
        "draft_ms_per_round": 1e3 * cost.draft_s / rounds,
        "verify_ms_per_round": 1e3 * cost.verify_s / rounds,
        "forward_ms_per_round": 1e3 * cost.forward_s / rounds,
        "bytes_per_round": cost.bytes / rounds,
    }


def ratios(played: dict[str, list[Played]], prompts: int) -> dict[str, dict[str, float]]:
    """Tokens per round of one way over another's, on the same resamples of prompts."""
    draw = Bootstrap(prompts)
    values = {name: efficiency(some, draw, prompts) for name, some in played.items()}
    known = [(above, below) for above, below in RATIOS if above in values and below in values]
    return {f"{above} / {below}": interval(values[above] / values[below]) for above, below in known}


def share_of_optimum(pair: Pair, played: Sequence[Played], prompts: int) -> dict[str, Any]:
    """Acceptance of k-SEQ and α*, each the mean over all positions where a round began, and their ratio."""
    found = rules_optimum.shares(pair.engine, played, K)
    sums = {name: [0.0] * prompts for name in ("accepted", "optimum", "positions")}
    for prompt, accepted, optimum, rounds in found:
        sums["accepted"][prompt] += accepted
        sums["optimum"][prompt] += optimum
        sums["positions"][prompt] += rounds
    positions = sum(sums["positions"])
    return {
        "positions": positions,
        "accepted": sum(sums["accepted"]) / positions,
        "optimum": sum(sums["optimum"]) / positions,
        "share": interval(Bootstrap(prompts).ratio(sums["accepted"], sums["optimum"])),
    }


def efficiency(played: Sequence[Played], draw: Bootstrap, prompts: int) -> Values:
    """Tokens per round, of all prompts and of every resample."""
    emitted, rounds = [0.0] * prompts, [0.0] * prompts
    for one in played:
        emitted[one.job.prompt] += one.emitted
        rounds[one.job.prompt] += one.rounds
    return draw.ratio(emitted, rounds)


def total(played: Sequence[Played], what: str) -> int:
    """Sum of a count over sessions."""
    return sum(int(getattr(one, what)) for one in played)
