"""Figures as tables."""

from __future__ import annotations

from typing import Any

_COLUMNS = (
    ("tokens/s", "tokens_per_s", 1),
    ("TTFT ms", "ttft_ms_p50", 1),
    ("ms/token p50", "ms_per_token_p50", 2),
    ("p95", "ms_per_token_p95", 2),
    ("tokens/round", "tokens_per_round", 2),
    ("forward ms", "forward_ms_p50", 2),
    ("draft wait ms", "draft_wait_ms_p50", 2),
    ("overhead ms", "round_overhead_without_drafting_ms_p50", 2),
)


def markdown(results: dict[str, Any]) -> str:
    """One table per concurrency level; ratios are against speculation off in the same run."""
    parts: list[str] = []
    for clients, arms in results["levels"].items():
        heads, rows = _rows(arms)
        parts.append(f"{clients} client{'s' if clients != '1' else ''}:\n\n" + table(heads, rows))
        accepted = [
            f"- {name}: " + " ".join(f"{share:.2f}" for share in figures["acceptance_by_position"])
            for name, figures in arms.items()
            if figures.get("acceptance_by_position")
        ]
        parts.append("Acceptance by position:\n\n" + "\n".join(accepted))
    return "\n\n".join(parts) + "\n"


def show(arms: dict[str, Any], console: Any) -> None:
    """The same table on a terminal."""
    from rich.table import Table

    heads, rows = _rows(arms)
    table = Table(box=None)
    for i, head in enumerate(heads):
        table.add_column(head, justify="right" if i else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _rows(arms: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    off = arms["off"]["tokens_per_s"]
    heads = ["arm", "vs off", *(title for title, _, _ in _COLUMNS)]
    rows = [
        [name, f"{figures['tokens_per_s'] / off:.2f}×"]
        + [f"{figures[key]:.{digits}f}" if key in figures else "–" for _, key, digits in _COLUMNS]
        for name, figures in arms.items()
    ]
    return heads, rows


def table(heads: list[str], rows: list[list[str]]) -> str:
    line = "| " + " | ".join(heads) + " |"
    rule = "|---|" + "---:|" * (len(heads) - 1)
    return "\n".join([line, rule, *("| " + " | ".join(row) + " |" for row in rows)])
