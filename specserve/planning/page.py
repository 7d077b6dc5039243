"""A plan as text, pictures and one HTML page. Everything says that it is simulated."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = ("#4c4c4c", "#0072b2", "#d55e00", "#009e73", "#cc79a7")
_WAY = (
    ("sessions", "sessions", "{:.0f}"),
    ("verifiers", "verifier", "{}"),
    ("drafters", "drafter", "{}"),
    ("routers", "router", "{}"),
    ("GPUs", "gpus", "{:g}"),
    ("tokens/s", "tokens_per_s", "{:,.0f}"),
    ("tokens/s and GPU", "tokens_per_s_per_gpu", "{:,.1f}"),
    ("TTFT ms p95", "ttft_ms_p95", "{:.0f}"),
    ("ms/token p50", "ms_per_token_p50", "{:.1f}"),
    ("p95", "ms_per_token_p95", "{:.1f}"),
    ("p99", "ms_per_token_p99", "{:.1f}"),
    ("price of 1M tokens", "price_per_million_tokens", "{:.3f}"),
    ("goals", "meets_goals", "{}"),
)
_TRACE = (
    ("most sessions", "most_sessions", "{:,.0f}"),
    ("requests", "requests", "{:,.0f}"),
    ("refused", "refused", "{:,.0f}"),
    ("tokens/s", "tokens_per_s", "{:,.0f}"),
    ("tokens/s and GPU", "tokens_per_s_per_gpu", "{:,.1f}"),
    ("TTFT ms p50", "ttft_ms_p50", "{:.0f}"),
    ("p95", "ttft_ms_p95", "{:.0f}"),
    ("ms/token p50", "ms_per_token_p50", "{:.1f}"),
    ("p95", "ms_per_token_p95", "{:.1f}"),
    ("GPU hours", "gpu_hours", "{:.2f}"),
    ("price of 1M tokens", "price_per_million_tokens", "{:.3f}"),
)

Table = tuple[str, list[str], list[list[str]]]  # its title, heads, rows


def tables(result: Mapping[str, Any]) -> list[Table]:
    """What a plan says in numbers."""
    best = result["best"]
    ways = {
        f"{name} (best)" if name == best else name: {**way, **way["replicas"]} for name, way in result["ways"].items()
    }
    found = [("Simulated: at the peak of the traffic", *_rows("way", _WAY, ways))]
    if result["break_even"]:
        heads = ["drafter", "sessions per verifier", "acceptance of the first token", "price of a drafter GPU-hour"]
        rows = [
            [name, *(_or_none(even[key]) for key in ("sessions_per_verifier", "acceptance", "price"))]
            for name, even in result["break_even"].items()
        ]
        found.append(("Simulated: where speculation breaks even, per total GPU", heads, rows))
    if traces := result.get("traces"):
        found.append(("Simulated: the whole traffic, with the autoscaler", *_rows("way", _TRACE, traces)))
    return found


def markdown(result: Mapping[str, Any]) -> str:
    """The tables."""
    parts = []
    for title, heads, rows in tables(result):
        lines = [" | ".join(heads), "---|" + "---:|" * (len(heads) - 1), *(" | ".join(row) for row in rows)]
        parts.append(f"{title}\n\n" + "\n".join(f"| {line} |" if "---" not in line else f"|{line}" for line in lines))
    return "\n\n".join(parts) + "\n"


def write(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Pictures and the page that shows them. The files written."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = [_curves(result, folder / "curves.png")]
    if result.get("traces"):
        pictures.append(_traces(result["traces"], folder / "traffic.png"))
    body = []
    for title, heads, rows in tables(result):
        cells = "".join(f"<th>{html.escape(head)}</th>" for head in heads)
        lines = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        body.append(f"<h2>{html.escape(title)}</h2><table><tr>{cells}</tr>{lines}</table>")
    for picture in pictures:
        data = base64.b64encode(picture.read_bytes()).decode()
        body.append(f'<img alt="{picture.stem}, simulated" src="data:image/png;base64,{data}">')
    page = folder / "plan.html"
    page.write_text(_PAGE.format(body="\n".join(body)))
    return [page, *pictures]


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>specserve plan (simulated)</title>
<style>body {{ font: 15px sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em }}
table {{ border-collapse: collapse }} td, th {{ border-bottom: 1px solid #ccc; padding: .3em .7em; text-align: right }}
td:first-child, th:first-child {{ text-align: left }} img {{ max-width: 100%; margin-top: 2em }}</style></head>
<body><h1>Capacity plan</h1><p>Every number and picture on this page is <strong>simulated</strong>.</p>
{body}
</body></html>
"""


def _rows(
    first: str, columns: Sequence[tuple[str, str, str]], named: Mapping[str, Mapping[str, Any]]
) -> tuple[list[str], list[list[str]]]:
    rows = [[name, *(_show(form, values.get(key)) for _, key, form in columns)] for name, values in named.items()]
    return [first, *(title for title, _, _ in columns)], rows


def _show(form: str, value: Any) -> str:
    return ("met" if value else "missed") if isinstance(value, bool) else form.format(value)


def _or_none(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g}"


def _figure(rows: int, columns: int) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4 * columns, 4.0 * rows), layout="constrained", dpi=110)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _axes(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set(title=f"{title} (simulated)", xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def _curves(result: Mapping[str, Any], path: Path) -> Path:
    figure, ((worth, latency, price),) = _figure(1, 3)
    for colour, (name, points) in zip(_COLOURS, result["curves"].items(), strict=False):
        sessions = [point["sessions"] for point in points]
        per_gpu = [point["tokens_per_s_per_gpu"] for point in points]
        worth.plot(sessions, per_gpu, "o-", color=colour, label=name)
        latency.plot([point["ms_per_token_p95"] for point in points], per_gpu, "o-", color=colour, label=name)
        price.plot(sessions, [p["price_per_million_tokens"] for p in points], "o-", color=colour, label=name)
        if even := result["break_even"].get(name, {}).get("sessions_per_verifier"):
            worth.axvline(even, color=colour, linestyle=":", label=f"{name} breaks even at {even:.0f}")
    if goal := result["figures"].get("goals", {}).get("ms_per_token"):
        latency.axvline(goal, color="#cc0000", linestyle="--", label=f"goal {goal:g} ms")
    for axes in (worth, price):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
    worth.set_ylim(bottom=0)
    latency.set_ylim(bottom=0)
    if any(point["price_per_million_tokens"] for points in result["curves"].values() for point in points):
        price.set_yscale("log")
    _axes(worth, "Yield per total GPU", "sessions per verifier", "tokens/s and GPU")
    _axes(latency, "Yield against latency", "ms per token, p95", "tokens/s and GPU")
    _axes(price, "Price of a million tokens", "sessions per verifier", "price")
    figure.savefig(path)
    return path


def _traces(traces: Mapping[str, Any], path: Path) -> Path:
    figure, grid = _figure(2, len(traces) * 2)
    for i, (name, trace) in enumerate(traces.items()):
        (sessions, tokens), (replicas, latency) = grid[0][2 * i : 2 * i + 2], grid[1][2 * i : 2 * i + 2]
        rows = trace["timeline"]
        at = [row["at_s"] for row in rows]
        sessions.plot(at, [row["requests"] for row in rows], color=_COLOURS[0], label="requests under way")
        tokens.plot(at, [row["tokens_per_s"] for row in rows], color=_COLOURS[1], label="tokens/s")
        for colour, pool in zip(_COLOURS, ("router", "verifier", "drafter"), strict=False):
            if pool in rows[0]:
                replicas.plot(at, [row[pool] for row in rows], color=colour, label=f"{pool}s")
        latency.plot(
            at, [row.get("ms_per_token_p95", math.nan) for row in rows], color=_COLOURS[1], label="ms per token, p95"
        )
        latency.plot(
            at,
            [row.get("ttft_ms_p95", math.nan) for row in rows],
            color=_COLOURS[2],
            label="ms to the first token, p95",
        )
        latency.set_yscale("log")
        for axes, what in ((sessions, "load"), (tokens, "yield"), (replicas, "replicas"), (latency, "latency")):
            _axes(axes, f"{name}: {what}", "seconds", "")
        for axes in (sessions, tokens, replicas):
            axes.set_ylim(bottom=0)
    figure.savefig(path)
    return path
