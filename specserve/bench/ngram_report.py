"""Figures of the n-gram bench as tables and as a heat map."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from specserve.bench.report import table
from specserve.draft.ngram import STRATEGIES
from specserve.errors import ConfigError

# Tokens per call on an A100 in bf16, greedy (2411.03786); the target's own text decides, so only the order compares.
PAPER = {
    "Phi-3-mini, best (k, w)": {"MT-Bench": 2.36, "HumanEval": 2.51, "GSM8K": 2.51},
    "Mistral-7B, (10, 10)": {"MT-Bench": 2.13, "HumanEval": 2.22, "GSM8K": 2.16},
    "Vicuna-13B, best (k, w)": {"MT-Bench": 2.78, "HumanEval": 2.91, "GSM8K": 2.56},
}


def markdown(results: dict[str, Any]) -> str:
    """All tables."""
    names = list(results["sets"])
    parts = [_arms({name: results["sets"][name]["arms"] for name in names})]
    for name in names:
        figures = results["sets"][name]
        if "grid" in figures:
            parts += [f"{name}, tokens per call at (k, w):\n\n{_grid(figures['grid'], 'tokens_per_call')}"]
            parts += [f"{name}, speed-up by the measured cost curve:\n\n{_grid(figures['grid'], 'speed_up')}"]
            parts += [f"{name}, rounds by the row that was taken and its depth:\n\n{_taken(figures['grid'])}"]
        if "wall" in figures:
            rows = [[arm, f"{f['tokens_per_call']:.2f}", f"{f['speed_up']:.2f}×"] for arm, f in figures["wall"].items()]
            parts.append(f"{name}, wall clock:\n\n" + table(["arm", "tokens/call", "vs off"], rows))
    paper = [
        [model, *(f"{row[name]:.2f}" for name in ("MT-Bench", "HumanEval", "GSM8K"))] for model, row in PAPER.items()
    ]
    parts.append("The paper's tokens per call:\n\n" + table(["model", "MT-Bench", "HumanEval", "GSM8K"], paper))
    cost = results["verify_ms"]
    parts.append("Verification:\n\n" + table(["tokens", *cost], [["ms", *(f"{ms:.1f}" for ms in cost.values())]]))
    kinds = {name: f for name, f in results["latency"].items() if isinstance(f, dict)}
    rows = [[name, f"{f['ms_p50']:.2f}", f"{f['ms_p95']:.2f}", f"{f['nodes']:.0f}"] for name, f in kinds.items()]
    head = [
        f"{results['latency']['sessions']} sessions, {results['latency']['context']} tokens",
        "ms p50",
        "p95",
        "nodes",
    ]
    parts.append("Draft latency of one batch:\n\n" + table(head, rows))
    return "\n\n".join(parts) + "\n"


def heat_map(results: dict[str, Any], path: Path) -> None:
    """Tokens per call and speed-up over (k, w), a column for each set. Raises ConfigError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("a heat map needs matplotlib: pip install 'specserve[bench]'") from error
    grids = {name: figures["grid"] for name, figures in results["sets"].items() if "grid" in figures}
    figure = Figure(figsize=(4.2 * len(grids), 7), layout="constrained")
    rows = figure.subplots(2, len(grids), squeeze=False)
    for axes, (what, label) in zip(
        rows, (("tokens_per_call", "tokens per call"), ("speed_up", "speed-up")), strict=True
    ):
        for axis, (name, cells) in zip(axes, grids.items(), strict=True):
            ks, ws = _sides(cells)
            value = {(cell["k"], cell["w"]): cell[what] for cell in cells}
            image = axis.imshow([[value[k, w] for w in ws] for k in ks], origin="lower", cmap="viridis")
            for y, k in enumerate(ks):
                for x, w in enumerate(ws):
                    colour = "black" if image.norm(value[k, w]) > 0.6 else "white"
                    axis.text(x, y, f"{value[k, w]:.2f}", ha="center", va="center", color=colour, fontsize=7)
            axis.set(title=f"{name}, {label}", xlabel="w (tokens)", ylabel="k (rows)")
            axis.set_xticks(range(len(ws)), [str(w) for w in ws])
            axis.set_yticks(range(len(ks)), [str(k) for k in ks])
            figure.colorbar(image, ax=axis)
    figure.savefig(path, dpi=110)


def _arms(sets: dict[str, dict[str, Any]]) -> str:
    arms = list(next(iter(sets.values())))
    rows = [
        [arm, *(f"{sets[name][arm]['tokens_per_call']:.2f}, {sets[name][arm]['speed_up']:.2f}×" for name in sets)]
        for arm in arms
    ]
    singles = ("prompt lookup", *STRATEGIES)
    best = {name: max(some[arm]["tokens_per_call"] for arm in singles) for name, some in sets.items()}
    rows.append(["mix / best single", *(f"{sets[name]['mix']['tokens_per_call'] / best[name]:.2f}" for name in sets)])
    return "Tokens per call and speed-up by the measured cost curve:\n\n" + table(["arm", *sets], rows)


def _grid(cells: list[dict[str, Any]], what: str) -> str:
    ks, ws = _sides(cells)
    value = {(cell["k"], cell["w"]): cell[what] for cell in cells}
    return table(["k \\ w", *map(str, ws)], [[str(k), *(f"{value[k, w]:.2f}" for w in ws)] for k in ks])


def _taken(cells: list[dict[str, Any]]) -> str:
    """Of the largest batch, the last."""
    rows = [[str(i), *map(str, row[: cells[-1]["w"]])] for i, row in enumerate(cells[-1]["taken"], 1)]
    return table(["row \\ depth", *(str(depth) for depth in range(1, cells[-1]["w"] + 1))], rows)


def _sides(cells: list[dict[str, Any]]) -> tuple[list[int], list[int]]:
    return sorted({cell["k"] for cell in cells}), sorted({cell["w"] for cell in cells})
