"""The figures of `specserve bench rules` as tables, beside what they must reach and what was published."""

from __future__ import annotations

from typing import Any

from specserve.bench.report import table as table
from specserve.bench.rules import BLOCK, CHAIN, KSEQ, RECURSIVE, REJECTION, TRAVERSAL, TREE, TREE_LIKE_KSEQ, K, L

# Ratio of tokens per round -> at least, published.
_HELD = {
    f"{KSEQ} / {REJECTION}": ("1.15", "1.38 (PaLM-2, LM1B), 1.14–1.23 (Qwen2.5, K=8, L=4)"),
    f"{BLOCK} / {REJECTION}": ("1.02", "1.07–1.10"),
    f"{TREE} / {CHAIN}": ("1.20", ""),
    f"{TREE_LIKE_KSEQ} / {KSEQ}": ("1.00", ""),
    f"{CHAIN} / {REJECTION}": ("", "0.97–1.00 (Qwen2.5, L=4)"),
    f"{RECURSIVE} / {REJECTION}": ("", "1.14–1.22 (Qwen2.5, K=8, L=4)"),
    f"{TRAVERSAL} / {REJECTION}": ("", ""),
    f"{TREE} / {KSEQ}": ("", ""),
}
_TIME_LIMITS = {
    "coupled, T=0": 0.10,
    "coupled, T=1": 0.10,
    "rejection": 0.10,
    "block": 0.10,
    "kseq, K=8": 0.20,
}


def markdown(results: dict[str, Any]) -> str:
    """Three tables: the ways, the ratios, the time of a verdict."""
    parts = [_ways(results), _ratios(results)]
    if "verify" in results:
        parts.append(_verify(results["verify"]))
    return "\n\n".join(parts) + "\n"


def _ways(results: dict[str, Any]) -> str:
    heads = ["way", "K, L", "nodes/round", "tokens/round", "95 %", "first accepted"]
    heads += ["ms/token", "draft ms/round", "verify ms/round", "bytes/round"]
    rows = []
    for name, found in results["ways"].items():
        way, value = found["way"], found["tokens_per_round"]
        rows.append(
            [
                f"{name}, ≤ {way['nodes']} nodes" if name in (TREE, TREE_LIKE_KSEQ) else name,
                f"{way['branches']}, {way['depth']}",
                f"{found['nodes_per_round']:.1f}",
                f"{value['value']:.2f}",
                _between(value),
                f"{found['first_accepted']:.2f}",
                f"{found['ms_per_token']:.2f}",
                f"{found['draft_ms_per_round']:.2f}",
                f"{found['verify_ms_per_round']:.2f}",
                f"{found['bytes_per_round']:.0f}",
            ]
        )
    note = (
        f"Times are those of a batch, shared by its {results['batch']} sessions; bytes are of all messages of a round."
    )
    return f"{table(heads, rows)}\n\n{note}"


def _ratios(results: dict[str, Any]) -> str:
    rows = [
        [f"{name}, tokens/round", f"{value['value']:.3f}", _between(value, 3), *_HELD[name]]
        for name, value in results["ratios"].items()
    ]
    if best := results.get("optimum"):
        mean = f"{KSEQ}'s acceptance as a share of α* ({best['accepted']:.3f} of {best['optimum']:.3f}), K={K}"
        published = "0.92 (synthetic), above 0.63 (proven)"
        rows.append([mean, f"{best['share']['value']:.3f}", _between(best["share"], 3), "0.85", published])
    return table([f"figure (L={L})", "measured", "95 %", "at least", "published"], rows)


def _verify(timed: dict[str, Any]) -> str:
    rows = [
        [name, f"{found['ms']:.2f}", f"{found['share_of_forward']:.1%}", f"{_TIME_LIMITS[name]:.0%}"]
        for name, found in timed["rules"].items()
    ]
    shape = f"{timed['sessions']} sessions × {timed['nodes']} nodes, V={timed['vocab']}, fp32"
    pass_ = f"a bf16 pass of {timed['forward_parameters'] / 1e6:.0f}M parameters, {timed['forward_ms']:.1f} ms"
    head = f"Time of a verdict, {shape}, {timed['threads']} threads, beside {pass_} for the same batch"
    return f"{head}:\n\n" + table(["rule", "ms", "share of the pass", "at most"], rows)


def _between(value: dict[str, float], digits: int = 2) -> str:
    return f"{value['low']:.{digits}f}–{value['high']:.{digits}f}"
