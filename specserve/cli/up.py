"""`specserve up CONFIG`: deploy, serve until told to stop, drain."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path

import click


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the addresses as one JSON object when ready.")
def command(config: Path, as_json: bool) -> None:
    """Deploy CONFIG (a Ray Serve config file) on the cluster of RAY_ADDRESS, or on a local one.

    Prints the addresses when ready. SIGINT or SIGTERM stops it: open streams finish within the grace period.
    """
    from rich.console import Console

    from deployments import launch

    err = Console(stderr=True)
    stop = threading.Event()
    with launch.up(launch.load(config), report=lambda line: err.print(f"[dim]{line}[/dim]")) as server:
        for number in (signal.SIGINT, signal.SIGTERM):  # only now: ray.init sets handlers of its own
            signal.signal(number, lambda *_: stop.set())
        if as_json:
            click.echo(json.dumps({"grpc": server.grpc, "http": server.http, "application": server.name}))
        else:
            click.echo(f"ready: gRPC {server.grpc}, HTTP {server.http}")
        stop.wait()
