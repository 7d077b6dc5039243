"""`specserve info`: what a running server is."""

from __future__ import annotations

import click


@click.command()
@click.option("--address", default="localhost:9000", show_default=True, help="gRPC address of the server.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(address: str, as_json: bool) -> None:
    """Show the model, the drafters, the limits and the measurements of a server."""
    from google.protobuf import json_format

    from specserve.transport.client import Client

    with Client(address) as client:
        info = client.info()
    if as_json:
        click.echo(json_format.MessageToJson(info, preserving_proto_field_name=True))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None)
    table.add_row("version", info.version)
    table.add_row("model", f"{info.model}  ({info.vocab_size} token ids, context {info.context_length})")
    for drafter in info.drafters:
        table.add_row("drafter", f"{drafter.name}  ({drafter.kind}, up to {drafter.max_draft_tokens} tokens)")
    table.add_row("rules", ", ".join(f"{r} (default)" if r == info.default_rule else r for r in info.rules))
    table.add_row("sessions", f"{info.max_sessions} at once, {info.max_waiting} waiting")
    for name, value in sorted(info.stats.items()):
        table.add_row(name, f"{value:,.4g}")
    Console().print(table)
