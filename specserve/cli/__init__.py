"""The command line. Commands load when called: `specserve generate` starts without torch or ray."""

from __future__ import annotations

import importlib

import click

_COMMANDS = ("bench", "demo", "generate", "info", "plan", "train", "up")


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"specserve.cli.{name}").command
        return command


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="specserve")
def cli() -> None:
    """Speculative decoding on Ray: many cheap drafters, one large verifier, exactly the verifier's text."""


def main() -> None:
    """Entry point: our own errors end with one line on stderr and status 1."""
    from specserve.errors import SpecserveError

    try:
        cli()
    except SpecserveError as error:
        click.echo(f"specserve: {error}", err=True)
        raise SystemExit(1) from None
