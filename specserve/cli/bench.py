"""`specserve bench`: measure a configuration against its peers."""

from __future__ import annotations

import json
import platform
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click


class _Bench(click.Group):
    """`specserve bench CONFIG` is `specserve bench serve CONFIG`."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self.commands and not args[0].startswith("-"):
            args = ["serve", *args]
        return super().resolve_command(ctx, args)


def _report(line: str) -> None:
    from rich.console import Console

    Console(stderr=True).print(f"[dim]{line}[/dim]")


def _save(results: dict[str, Any], out: Path | None) -> None:
    if out is not None:
        out.write_text(json.dumps(results, indent=1) + "\n")


@click.group(cls=_Bench, name="bench")
def command() -> None:
    """Measure. `specserve bench CONFIG` runs a configuration against its peers."""


@command.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option(
    "--prompts", "prompts_file", type=click.Path(path_type=Path), required=True, help="JSON lines, may be .gz."
)
@click.option("--limit", type=int, help="Use the first N prompts only.")
@click.option("--max-tokens", default=128, show_default=True, help="Most tokens per prompt.")
@click.option("--temperature", default=0.0, show_default=True)
@click.option(
    "--concurrency", multiple=True, type=int, default=(1,), show_default=True, help="Clients at once; repeatable."
)
@click.option("--inflate", type=float, help="Make the target cost like one of this many million parameters.")
@click.option("--peers/--no-peers", default=True, show_default=True, help="Run transformers' own generation too.")
@click.option("--json", "out", type=click.Path(path_type=Path), help="Write all figures to this file.")
def serve(
    config: Path,
    prompts_file: Path,
    limit: int | None,
    max_tokens: int,
    temperature: float,
    concurrency: tuple[int, ...],
    inflate: float | None,
    peers: bool,
    out: Path | None,
) -> None:
    """Run CONFIG with speculation off, with each drafter, and `transformers`' own generation, interleaved."""
    from specserve.bench import prompts, report
    from specserve.bench import serve as bench
    from specserve.bench.load import Workload

    loaded = prompts.load(prompts_file, limit)
    load = Workload(max_tokens=max_tokens, temperature=temperature)
    with ExitStack() as stack:
        deployed: dict[str, Any] = bench.read(config)
        if inflate is not None:
            deployed = bench.inflated(deployed, inflate, stack)
        results = bench.run(
            deployed,
            loaded,
            load,
            concurrency=concurrency,
            peers=peers,
            report=_report,
        )
    results["conditions"] = {
        "config": str(config),
        "prompts": f"{prompts_file.name}, {len(loaded)}",
        "max_tokens": max_tokens,
        "temperature": temperature,
        "inflated_to_million_parameters": inflate,
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
    }
    _save(results, out)
    click.echo(report.markdown(results))
    if "identical_to_off" in results:
        click.echo(f"Texts identical to speculation off: {results['identical_to_off']}")


@command.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option(
    "--prompts", "prompts_file", type=click.Path(path_type=Path), required=True, help="JSON lines, may be .gz."
)
@click.option("--limit", type=int, help="Use the first N prompts only.")
@click.option("--max-tokens", default=32, show_default=True, help="Most tokens per prompt.")
@click.option(
    "--depth", "depths", multiple=True, type=int, default=(1, 4, 8), show_default=True, help="max_draft_tokens."
)
@click.option("--concurrency", multiple=True, type=int, default=(1, 4, 16), show_default=True, help="Clients at once.")
@click.option("--json", "out", type=click.Path(path_type=Path), help="Write all figures to this file.")
def exact(
    config: Path,
    prompts_file: Path,
    limit: int | None,
    max_tokens: int,
    depths: tuple[int, ...],
    concurrency: tuple[int, ...],
    out: Path | None,
) -> None:
    """Compare greedy texts of CONFIG (its target in fp32) with `transformers` generate, for every drafter."""
    from specserve.bench import exact as check
    from specserve.bench import prompts
    from specserve.bench import serve as bench

    results = check.run(
        bench.read(config),
        prompts.load(prompts_file, limit),
        max_tokens,
        depths=depths,
        concurrency=concurrency,
        report=_report,
    )
    _save(results, out)
    click.echo(check.markdown(results))


@command.command()
@click.option("--target", required=True, help="A Hugging Face directory, or zoo:NAME for an embedded model.")
@click.option("--drafter", required=True, help="The same, of a small model with the target's vocabulary.")
@click.option(
    "--prompts",
    "prompt_files",
    type=click.Path(path_type=Path),
    required=True,
    multiple=True,
    help="JSON lines, may be .gz; repeatable.",
)
@click.option("--limit", type=int, help="Use the first N prompts of each file only.")
@click.option("--max-tokens", default=64, show_default=True, help="Most tokens per sample.")
@click.option("--temperature", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True)
@click.option("--way", "only", multiple=True, help="Run this way only, by its name in the table; repeatable.")
@click.option("--samples", default=1, show_default=True, help="Samples per prompt, each with its own seed.")
@click.option("--batch", default=8, show_default=True, help="Sessions at once.")
@click.option("--pilot", default=16, show_default=True, help="Sessions on which the shape of the trees is chosen.")
@click.option(
    "--turns", default=40, show_default=True, help="Turns of the measurement of verify time; 0 leaves it out."
)
@click.option("--inflate", default=138.0, show_default=True, help="Million parameters of the pass it is a share of.")
@click.option("--device", default="cpu", show_default=True)
@click.option(
    "--dtype", default="float32", show_default=True, help="Of both models, where tokens per round are counted."
)
@click.option("--json", "out", type=click.Path(path_type=Path), help="Write all figures to this file.")
def rules(
    target: str,
    drafter: str,
    prompt_files: tuple[Path, ...],
    limit: int | None,
    max_tokens: int,
    temperature: float,
    only: tuple[str, ...],
    samples: int,
    batch: int,
    pilot: int,
    turns: int,
    inflate: float,
    device: str,
    dtype: str,
    out: Path | None,
) -> None:
    """Compare the verification rules on the same prompts and seeds, and with the figures of the papers."""
    from specserve.bench import prompts, rules_report
    from specserve.bench import rules as bench
    from specserve.config import model_dir

    if unknown := sorted(set(only) - set(bench.NAMES)):
        raise click.BadParameter(f"must be among {bench.NAMES}; got {', '.join(unknown)}", param_hint="--way")
    texts = [prompts.load(path, limit) for path in prompt_files]
    results = bench.run(
        model_dir(target),
        model_dir(drafter),
        texts,
        bench.Plan(max_tokens, temperature, samples, batch, pilot, turns, inflate, only),
        device=device,
        dtype=dtype,
        report=_report,
    )
    results["conditions"] = {
        "target": target,
        "drafter": drafter,
        "prompts": [f"{path.name}, {len(some)}" for path, some in zip(prompt_files, texts, strict=True)],
        "max_tokens": max_tokens,
        "temperature": temperature,
        "samples": samples,
        "batch": batch,
        "dtype": f"{dtype} on {device}",
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
    }
    _save(results, out)
    click.echo(rules_report.markdown(results))


@command.command()
@click.option(
    "--sessions", multiple=True, type=int, default=(1, 4, 16, 64, 256), show_default=True, help="At once; repeatable."
)
@click.option("--seconds", default=5.0, show_default=True, help="Measured for each number of sessions.")
@click.option("--verifiers", default=4, show_default=True)
@click.option("--drafters", default=2, show_default=True)
@click.option("--verify-ms", default=10.0, show_default=True, help="What a verifier's forward pass sleeps.")
@click.option("--draft-ms", default=2.0, show_default=True, help="What a drafter's sleeps.")
@click.option("--json", "out", type=click.Path(path_type=Path), help="Write all figures to this file.")
def router(
    sessions: tuple[int, ...],
    seconds: float,
    verifiers: int,
    drafters: int,
    verify_ms: float,
    draft_ms: float,
    out: Path | None,
) -> None:
    """Measure one router on workers that sleep instead of computing: rounds, openings, memory."""
    from specserve.bench import router as bench

    results = bench.run(
        sessions,
        seconds=seconds,
        verifiers=verifiers,
        drafters=drafters,
        verify_ms=verify_ms,
        draft_ms=draft_ms,
        report=_report,
    )
    _save(results, out)
    click.echo(bench.markdown(results))


@command.command()
@click.argument("config", type=click.Path(path_type=Path), required=False)
@click.option("--drafter", default="ar", show_default=True, help="Of CONFIG, the pool that drafts in the second arm.")
@click.option("--depth", default=4, show_default=True, help="Tokens of its drafts.")
@click.option("--inflate", type=float, help="Make CONFIG's target cost like one of this many million parameters.")
@click.option("--seconds", default=10.0, show_default=True, help="Measured for each case.")
@click.option("--json", "out", type=click.Path(path_type=Path), help="Write all figures to this file.")
def simulation(
    config: Path | None, drafter: str, depth: int, inflate: float | None, seconds: float, out: Path | None
) -> None:
    """Compare `specserve plan`'s simulation with the real router on workers that sleep, and with CONFIG if given."""
    from specserve.bench import serve as bench
    from specserve.bench import simulation as check
    from specserve.bench.watch import Window
    from specserve.cli.demo import PROMPTS

    window = Window(seconds)
    results = {"sleeping": check.sleeping(window, report=_report)}
    if config is not None:
        with ExitStack() as stack:
            deployed = bench.read(config)
            if inflate is not None:
                deployed = bench.inflated(deployed, inflate, stack)
            window = Window(2 * seconds, warm_s=3.0, max_tokens=48)  # a pass takes longer than sleepers' do
            results["served"] = check.served(deployed, PROMPTS, window, drafter=drafter, depth=depth, report=_report)
    _save(results, out)
    click.echo("\n".join(f"{name}:\n\n{check.markdown(figures)}" for name, figures in results.items()))


@command.command()
@click.option("--model", default="zoo:infill", show_default=True, help="An XLNet directory, or zoo:infill.")
@click.option(
    "--problems",
    "problem_files",
    type=click.Path(path_type=Path),
    multiple=True,
    help="JSON lines of prompt, suffix and canonical_solution, may be .gz; repeatable.",
)
@click.option("--limit", type=int, help="Use the first N problems of each file only.")
@click.option("--sequences", default=64, show_default=True, help="Windows of held-out library text.")
@click.option("--length", default=256, show_default=True, help="Tokens of a window.")
@click.option("--hidden", default=0.95, show_default=True, help="Share of a window that is hidden.")
@click.option("--temperature", default=1.0, show_default=True)
@click.option("--depth", "depths", multiple=True, type=int, default=(2, 5, 10), show_default=True, help="k of ASSD.")
@click.option("--batch", default=8, show_default=True, help="Requests at once, in the arms that have several.")
@click.option("--scorer", default="zoo:target", show_default=True, help="Causal LM for perplexity; empty for none.")
@click.option("--threads", default=1, show_default=True, help="torch threads.")
@click.option("--json", "out", type=click.Path(path_type=Path), help="Write all figures to this file.")
def infill(
    model: str,
    problem_files: tuple[Path, ...],
    limit: int | None,
    sequences: int,
    length: int,
    hidden: float,
    temperature: float,
    depths: tuple[int, ...],
    batch: int,
    scorer: str,
    threads: int,
    out: Path | None,
) -> None:
    """Fill gaps one token at a time and by speculation, with and without cached keys, alone and in a batch."""
    from specserve.bench import infill as bench
    from specserve.config import model_dir

    results = bench.run(
        model_dir(model),
        problem_files,
        arms=bench.arms(depths, batch),
        scorer=model_dir(scorer) if scorer else None,
        sequences=sequences,
        length=length,
        hidden=hidden,
        temperature=temperature,
        limit=limit,
        threads=threads,
        report=_report,
    )
    results["conditions"] = {
        "model": model,
        "problems": [path.name for path in problem_files],
        "sequences": sequences,
        "length": length,
        "hidden": hidden,
        "temperature": temperature,
        "threads": threads,
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
    }
    _save(results, out)
    click.echo(bench.markdown(results))


@command.command()
@click.option("--target", default="zoo:target", show_default=True, help="A Hugging Face directory, or zoo:NAME.")
@click.option(
    "--table", default="zoo:ngram", show_default=True, help="File of `specserve train ngram`; empty for none."
)
@click.option(
    "--prompts",
    "prompt_files",
    type=click.Path(path_type=Path),
    required=True,
    multiple=True,
    help="JSON lines, may be .gz; repeatable.",
)
@click.option("--limit", type=int, help="Use the first N prompts of each file only.")
@click.option("--max-tokens", default=96, show_default=True, help="Tokens of every text.")
@click.option("--temperature", default=0.0, show_default=True)
@click.option("--sweep", is_flag=True, help="Run the (k, w) grid, and draw it.")
@click.option("--edits", is_flag=True, help="Also repeat the prompts with small changes, as a scripted target.")
@click.option("--wall", is_flag=True, help="Verify by the target itself, on the wall clock, too.")
@click.option(
    "--inflate", default=138.0, show_default=True, help="Million parameters of the timed target; 0: as it is."
)
@click.option("--dtype", default="bfloat16", show_default=True, help="Of the timed target.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--png", type=click.Path(path_type=Path), default="ngram.png", show_default=True, help="The heat map.")
@click.option("--json", "out", type=click.Path(path_type=Path), help="Write all figures to this file.")
def ngram(
    target: str,
    table: str,
    prompt_files: tuple[Path, ...],
    limit: int | None,
    max_tokens: int,
    temperature: float,
    sweep: bool,
    edits: bool,
    wall: bool,
    inflate: float,
    dtype: str,
    device: str,
    png: Path,
    out: Path | None,
) -> None:
    """Draft without a model: every strategy alone, the mix, the (k, w) grid, and what drafting costs.

    Texts are written once by the target; drafters are then played on them, and time is what a measured curve says that
    verification costs. With --wall the target verifies for real.
    """
    from specserve.bench import ngram as bench
    from specserve.bench import ngram_report, prompts
    from specserve.config import model_dir, table_file
    from specserve.draft.ngram.table import load_table
    from specserve.fingerprint import fingerprint

    path = model_dir(target)
    results = bench.run(
        path,
        load_table(table_file(table), fingerprint(path)) if table else None,
        {file.name.partition(".")[0]: prompts.load(file, limit) for file in prompt_files},
        bench.Plan(max_tokens, temperature, inflate, wall, sweep, edits, dtype, device),
        report=_report,
    )
    results["conditions"] = {
        "target": target,
        "inflated_to_million_parameters": inflate,
        "prompts": [file.name for file in prompt_files],
        "limit": limit,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "dtype": f"{dtype} on {device}",
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
    }
    _save(results, out)
    if sweep:
        ngram_report.heat_map(results, png)
    click.echo(ngram_report.markdown(results))


@command.command()
@click.option("--target", default="zoo:target", show_default=True, help="A Hugging Face directory, or zoo:NAME.")
@click.option("--heads", "folders", required=True, multiple=True, help="Heads of that target, or zoo:NAME; repeatable.")
@click.option(
    "--prompts",
    "prompt_files",
    type=click.Path(path_type=Path),
    required=True,
    multiple=True,
    help="JSON lines, may be .gz; repeatable.",
)
@click.option("--limit", type=int, help="Use the first N prompts of each file only.")
@click.option("--max-tokens", default=64, show_default=True, help="Most tokens per prompt.")
@click.option("--temperature", "temperatures", multiple=True, type=float, default=(0.0, 1.0), show_default=True)
@click.option("--batch", default=1, show_default=True, help="Sessions at once.")
@click.option("--nodes", default=16, show_default=True, help="Nodes of the trees.")
@click.option("--inflate", type=float, help="Make the target cost like one of this many million parameters.")
@click.option("--threads", default=2, show_default=True, help="torch threads.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--dtype", default="bfloat16", show_default=True)
@click.option("--json", "out", type=click.Path(path_type=Path), help="Write all figures to this file.")
def heads(
    target: str,
    folders: tuple[str, ...],
    prompt_files: tuple[Path, ...],
    limit: int | None,
    max_tokens: int,
    temperatures: tuple[float, ...],
    batch: int,
    nodes: int,
    inflate: float | None,
    threads: int,
    device: str,
    dtype: str,
    out: Path | None,
) -> None:
    """Compare heads of several ranks, used for 2, 4 and 8 tokens, with decoding without, in this process."""
    import tempfile

    from specserve.bench import heads as bench
    from specserve.bench import prompts
    from specserve.config import model_dir
    from specserve.zoo.inflate import inflate as grow

    with tempfile.TemporaryDirectory(prefix="specserve-inflated-") as folder:
        directory = model_dir(target)
        if inflate is not None:
            grow(directory, Path(folder) / "target", int(inflate * 1e6))
            directory = Path(folder) / "target"
        results = bench.run(
            directory,
            [model_dir(name) for name in folders],
            [prompts.load(path, limit) for path in prompt_files],
            max_tokens=max_tokens,
            temperatures=temperatures,
            batch=batch,
            nodes=nodes,
            threads=threads,
            device=device,
            dtype=dtype,
            report=_report,
        )
    results["conditions"] = {
        "target": target,
        "heads": [name if name.startswith("zoo:") else Path(name).name for name in folders],
        "prompts": [path.name for path in prompt_files],
        "limit": limit,
        "max_tokens": max_tokens,
        "batch": batch,
        "inflated_to_million_parameters": inflate,
        "threads": threads,
        "dtype": dtype,
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
    }
    _save(results, out)
    click.echo(bench.markdown(results))
