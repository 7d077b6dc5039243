"""`specserve plan`: how many replicas, what they give, and what that costs."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command()
@click.argument("figures", type=click.Path(path_type=Path))
@click.option("--bench", type=click.Path(path_type=Path), help="Take what FIGURES leaves out from this bench JSON.")
@click.option("--drafter", help="Of the bench JSON, the arm to take as drafter.  [default: its first]")
@click.option("--trace/--no-trace", default=True, show_default=True, help="Simulate the whole traffic too.")
@click.option("--out", type=click.Path(path_type=Path), help="Write pictures and an HTML page to this folder.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write all figures to this file.")
@click.option("--seed", default=0, show_default=True)
def command(
    figures: Path,
    bench: Path | None,
    drafter: str | None,
    trace: bool,
    out: Path | None,
    json_file: Path | None,
    seed: int,
) -> None:
    """Plan capacity for the FIGURES of a YAML file (deployments/plans/ has some). Everything is simulated.

    Gives replicas of each kind, tokens per second, latencies, the price of a million tokens with and without
    speculation per total GPU, and where speculation breaks even.
    """
    from rich.console import Console

    try:
        from specserve.planning import figures as declared
        from specserve.planning import measured, page
        from specserve.planning.plan import plan

        if out is not None:
            import matplotlib  # noqa: F401  # before minutes of simulation, not after
    except ImportError as error:
        raise click.ClickException(f"{error.name} is missing: pip install 'specserve[bench]'") from error

    shown = measured.read(bench, drafter) if bench is not None else None
    given = declared.load(figures, shown)
    console = Console(stderr=True)
    with console.status("simulating") as status:
        result = plan(given, trace=trace, seed=seed, report=lambda line: status.update(f"simulating  {line}"))
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=1) + "\n")
    if out is not None:
        for path in page.write(result, out):
            console.print(f"[dim]wrote {path}[/dim]")
    click.echo(page.markdown(result))
