"""`specserve train`: make a target or a drafter of your own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

_PATH = click.Path(path_type=Path)


def _recipe_options(function: Any) -> Any:
    """The options that every recipe shares."""
    for option in (
        click.option("--out", type=_PATH, required=True, help="Hugging Face directory to write."),
        click.option("--corpus", "corpus", type=click.Path(path_type=Path, exists=True), multiple=True,
                     help="Text to add: a directory of .py/.txt/.md files or a .jsonl.gz; repeatable."),
        click.option("--library/--no-library", default=True, show_default=True, help="Use Python's standard library."),
        click.option("--tokens", type=int, help="Tokens to train on. Default: the recipe's."),
        click.option("--minutes", type=float, help="End earlier when this much training time is used up."),
        click.option("--seed", default=0, show_default=True),
        click.option("--workdir", type=_PATH, help="Where checkpoints live."),
        click.option("--resume/--fresh", default=True, show_default=True, help="Go on from the last checkpoint."),
        click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda."),
        click.option("--json", "as_json", is_flag=True, help="Print the figures as one JSON object."),
    ):  # fmt: skip
        function = option(function)
    return function


@click.group(name="train")
def command() -> None:
    """Train a small target from scratch, a drafter for a target of yours, or a model that fills gaps."""


@command.command()
@_recipe_options
def target(out: Path, as_json: bool, **options: Any) -> None:
    """A Llama-shaped target of about 9 million parameters, with its tokenizer."""
    from specserve.train.target import train_target

    _show(train_target(out, **_given(options)), as_json)


@command.command()
@click.option("--target", "target_dir", type=_PATH, required=True, help="Hugging Face directory of the target.")
@_recipe_options
def ar(target_dir: Path, out: Path, as_json: bool, **options: Any) -> None:
    """A small autoregressive drafter, distilled from any target that Hugging Face loads."""
    from specserve.train.ar import train_ar

    _show(train_ar(target_dir, out, **_given(options)), as_json)


@command.command()
@click.option("--target", "target_dir", type=_PATH, required=True, help="Hugging Face directory of the target.")
@click.option("--rank", default=1, show_default=True, help="Terms of the mixture; 1 is independent heads.")
@click.option("--predict", default=8, show_default=True, help="How many tokens the heads foresee.")
@click.option("--low-rank", type=int, help="Rank of each matrix beside the identity; 0: full. Default: the recipe's.")
@click.option("--vocabulary", type=int, help="Draft only so many ids, the most frequent. Default: all.")
@_recipe_options
def heads(target_dir: Path, out: Path, as_json: bool, **options: Any) -> None:
    """Multi-token heads on the last hidden state of any target that Hugging Face loads."""
    from specserve.train.heads import train_heads

    _show(train_heads(target_dir, out, **_given(options)), as_json)


@command.command()
@click.option("--target", type=_PATH, help="Hugging Face directory whose tokenizer it gets. Default: the embedded one.")
@click.option("--start", type=_PATH, help="Go on from a model of this recipe, with a schedule of its own.")
@_recipe_options
def anysubset(out: Path, as_json: bool, **options: Any) -> None:
    """A small any-subset model that fills gaps."""
    from specserve.train.anysubset import train_anysubset

    _show(train_anysubset(out, **_given(options)), as_json)


@command.command()
@click.option("--target", required=True, help="Hugging Face directory of the target, or zoo:NAME.")
@click.option("--out", type=_PATH, required=True, help="File to write, .safetensors; a .json beside it says how.")
@click.option("--successors", type=int, help="Likeliest next tokens kept of every token. Default: 16.")
@click.option("--greedy-rows", type=int, help="Of so many, what greedy decoding goes on with; 0 for none. Default: 4.")
@click.option("--greedy-depth", type=int, help="In so many tokens. Default: 6.")
@click.option("--first", type=int, help="Token id to put before every token, such as a beginning of text.")
@click.option("--batch", type=int, help="Tokens in one forward pass. Default: 256.")
@click.option("--workdir", type=_PATH, help="Where finished batches live until the table is whole.")
@click.option("--resume/--fresh", default=True, show_default=True, help="Go on behind the last finished batch.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one JSON object.")
def ngram(target: str, out: Path, as_json: bool, **options: Any) -> None:
    """Tables of a target's own unigrams and bigrams, for drafting without a model. Needs no text."""
    from specserve.config import model_dir
    from specserve.train.ngram import train_ngram

    _show(train_ngram(model_dir(target), out, **_given(options)), as_json)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """Without what was left to the recipe."""
    return {name: value for name, value in options.items() if value is not None}


def _show(report: Any, as_json: bool) -> None:
    figures = {
        "out": str(report.out),
        "parameters": report.parameters,
        "steps": report.steps,
        "tokens": report.tokens,
        "seconds": round(report.seconds, 1),
        **report.figures,
    }
    if as_json:
        click.echo(json.dumps(figures))
    else:
        for name, value in figures.items():
            click.echo(f"{name:<24} {value:,}" if isinstance(value, int | float) else f"{name:<24} {value}")
