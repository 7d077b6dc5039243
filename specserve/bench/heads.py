"""`specserve bench heads`: self-speculation by multi-token heads of several ranks, and decoding without, in one run.

Rounds in this process, no Ray and no gRPC: the verifier drafts, and its verdict carries the draft. Heads of n tokens
hold those of fewer as marginals, so one training per rank gives the whole row of n.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from specserve.bench.report import table
from specserve.bench.rules import encode
from specserve.bench.rules_intervals import Bootstrap, Values, interval
from specserve.bench.rules_play import ask, verdicts_of
from specserve.draft.heads.drafting import HeadsDrafting
from specserve.draft.heads.model import load_heads
from specserve.engine import Engine, Verifier
from specserve.types import Close, Draft, Sampling, SessionSpec, TokenIds, Verify

Report = Callable[[str], None]
TOKENS = (2, 4, 8)
_CONTEXT, _SPARE = 2048, 32
_FLOOR = 0.03  # of the trees, as a configuration has it by default


@dataclass(frozen=True, slots=True)
class Way:
    """Heads of one rank, of which n tokens are used: a chain, or a tree of at most so many nodes. n = 1 drafts nothing.

    branches: most children of a node; floor: nodes less likely than this are not continued.
    """

    rank: int
    n: int
    branches: int = 1
    nodes: int = 64
    floor: float = 0.0

    @property
    def name(self) -> str:
        if self.n == 1:
            return "off"
        shape = "" if self.branches == 1 else f", tree of {self.nodes}"
        return f"r={self.rank} n={self.n}{shape}"


@dataclass(slots=True)
class Tally:
    """Of all rounds of one way at one temperature; `drafted[i]` counts drafts at least i + 1 deep."""

    emitted: list[float]
    rounds: list[float]
    drafted: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    forward_s: float = 0.0
    draft_s: float = 0.0
    wall_s: float = 0.0

    def take(self, prompt: int, draft: Draft, accepted: int) -> None:
        self.rounds[prompt] += 1
        self.emitted[prompt] += accepted + 1
        depth = max(draft.depths(), default=0)
        while len(self.drafted) < depth:
            self.drafted.append(0)
            self.accepted.append(0)
        for i in range(depth):
            self.drafted[i] += 1
            self.accepted[i] += accepted > i


def run(
    target: Path,
    heads: Sequence[Path],
    prompts: Sequence[Sequence[str]],
    *,
    max_tokens: int = 64,
    temperatures: Sequence[float] = (0.0, 1.0),
    batch: int = 1,
    nodes: int = 16,
    threads: int = 2,
    device: str = "cpu",
    dtype: str = "bfloat16",
    report: Report = lambda _: None,
) -> dict[str, Any]:
    """All figures, as JSON-able values. The ways take turns batch by batch, so that drift falls on all alike.

    Args:
        heads: folders of heads, of one target.
        prompts: the texts of each prompt file.
        batch: sessions at once.
        nodes: of the trees.
        threads: of torch.
    """
    torch.set_num_threads(threads)
    slots = batch * (_CONTEXT + 64)
    engine = Engine(target, device=device, dtype=dtype, slots=slots, max_nodes=64, hidden=True)
    encoded, left_out = encode(target, prompts, min(engine.facts().context_len, _CONTEXT) - max_tokens - _SPARE)
    ways = {way: _verifier(engine, way, folder) for way, folder in _ways(heads, nodes)}
    results: dict[str, Any] = {"temperatures": {}, "prompts": {"used": len(encoded), "too_long": left_out}}
    for temperature in temperatures:
        tallies = {way: Tally([0.0] * len(encoded), [0.0] * len(encoded)) for way in ways}
        for turn, start in enumerate(range(0, len(encoded), batch)):
            order = list(ways)
            for way in order[turn % len(order) :] + order[: turn % len(order)]:
                some = {i: encoded[i] for i in range(start, min(start + batch, len(encoded)))}
                _play(ways[way], way, some, temperature, max_tokens, engine.facts().eos_token_ids, tallies[way])
            report(f"T={temperature:g}: {min(start + batch, len(encoded))} of {len(encoded)} prompts")
        results["temperatures"][f"{temperature:g}"] = _figures(tallies, len(encoded))
    return results


def _ways(heads: Sequence[Path], nodes: int) -> list[tuple[Way, Path | None]]:
    ways: list[tuple[Way, Path | None]] = [(Way(0, 1), None)]
    for folder in heads:
        shape = load_heads(folder).shape
        ways += [(Way(shape.rank, n), folder) for n in TOKENS if n <= shape.tokens]
        ways.append((Way(shape.rank, shape.tokens, 4, nodes, _FLOOR), folder))
    return ways


def _verifier(engine: Engine, way: Way, folder: Path | None) -> Verifier:
    drafter = None
    if folder is not None:
        drafter = HeadsDrafting(
            load_heads(folder),
            engine.unembedding(),
            max_tokens=way.n - 1,
            branches=way.branches,
            max_nodes=way.nodes,
            min_confidence=way.floor,
        )
    return Verifier(engine, drafter=drafter)


def _play(
    verifier: Verifier,
    way: Way,
    prompts: dict[int, TokenIds],
    temperature: float,
    max_tokens: int,
    ends: TokenIds,
    tally: Tally,
) -> None:
    """Generate for all prompts together, each to `max_tokens` or its end; the round of the prompt is not counted."""
    left = dict.fromkeys(prompts, max_tokens)
    length = {i: len(tokens) for i, tokens in prompts.items()}
    commands = []
    for i, tokens in prompts.items():
        sampling = Sampling(temperature=temperature, seed=i)
        spec = SessionSpec(sampling, len(tokens), len(tokens) + max_tokens + _SPARE)
        commands.append(Verify(i, 0, tokens, spec=spec, next_tokens=way.n - 1))
    drafts: dict[int, Draft] = {}
    while commands:
        start = time.perf_counter()
        verdicts = verdicts_of(ask(verifier, commands))
        seconds = time.perf_counter() - start
        commands = []
        for verdict in verdicts:
            i, draft = verdict.session, drafts.get(verdict.session)
            new = [*(draft.tokens[node] for node in verdict.accepted), verdict.token] if draft else [verdict.token]
            length[i] += len(new)
            if draft is not None:
                tally.take(i, draft, len(verdict.accepted))
                tally.forward_s += verdict.forward_s / verdict.batch
                tally.draft_s += verdict.draft_s / len(verdicts)
                tally.wall_s += seconds / len(verdicts)
                left[i] -= len(new)
            drafts[i] = verdict.draft
            if left[i] > 0 and not set(new) & set(ends):
                commands.append(Verify(i, length[i], (), verdict.draft, next_tokens=way.n - 1))
            else:
                verifier.submit(Close(i))


def _figures(tallies: dict[Way, Tally], prompts: int) -> dict[str, Any]:
    draw = Bootstrap(prompts)
    lengths = {way: draw.ratio(tally.emitted, tally.rounds) for way, tally in tallies.items()}
    off = next(tally for way, tally in tallies.items() if way.n == 1)
    speed = sum(off.emitted) / off.wall_s
    found: dict[str, Any] = {}
    for way, tally in tallies.items():
        rounds = sum(tally.rounds)
        found[way.name] = {
            "way": asdict(way),
            "accepted_length": interval(lengths[way]),
            "over_rank_1": _over_rank_1(way, lengths),
            "acceptance_by_position": [a / d for a, d in zip(tally.accepted, tally.drafted, strict=True)],
            "head_ms": 1e3 * tally.draft_s / rounds,
            "forward_ms": 1e3 * tally.forward_s / rounds,
            "head_share_of_forward": tally.draft_s / tally.forward_s,
            "tokens_per_s": sum(tally.emitted) / tally.wall_s,
            "over_off": sum(tally.emitted) / tally.wall_s / speed,
        }
    return found


def _over_rank_1(way: Way, lengths: dict[Way, Values]) -> dict[str, float] | None:
    """Accepted length over that of independent heads used alike, on the same resamples of prompts."""
    one = replace(way, rank=1)
    return interval(lengths[way] / lengths[one]) if way.rank > 1 and one in lengths else None


def markdown(results: dict[str, Any]) -> str:
    """A table for each temperature."""
    heads = ["way", "accepted length", "95 %", "over r=1", "acceptance by position"]
    heads += ["head ms", "forward ms", "head / forward", "tokens/s", "over off"]
    parts = []
    for temperature, found in results["temperatures"].items():
        rows = []
        for name, one in found.items():
            length, over = one["accepted_length"], one["over_rank_1"]
            rows.append(
                [
                    name,
                    f"{length['value']:.2f}",
                    f"{length['low']:.2f}–{length['high']:.2f}",
                    f"{over['value']:.3f} ({over['low']:.3f}–{over['high']:.3f})" if over else "",
                    " ".join(f"{rate:.2f}" for rate in one["acceptance_by_position"]),
                    f"{one['head_ms']:.2f}",
                    f"{one['forward_ms']:.2f}",
                    f"{one['head_share_of_forward']:.1%}",
                    f"{one['tokens_per_s']:.1f}",
                    f"{one['over_off']:.2f}×",
                ]
            )
        parts.append(f"T = {temperature}\n\n{table(heads, rows)}")
    return "\n\n".join(parts) + "\n"
