"""`specserve demo`: everything at once on this machine, from a cold start to a table."""

from __future__ import annotations

import asyncio
import copy
import json
import time
from contextlib import ExitStack
from typing import Any

import click

PROMPTS = (
    'import os\n\n\ndef find_files(directory, suffix):\n    """Yield the paths of all files below directory '
    'whose name ends with suffix."""\n    for root, dirs, files in os.walk(directory):\n',
    "class Queue:\n    def __init__(self, maxsize=0):\n        self.maxsize = maxsize\n        self._items = []\n\n"
    "    def empty(self):\n        return not self._items\n\n    def full(self):\n",
    "import unittest\n\n\nclass TestAdd(unittest.TestCase):\n    def test_zero(self):\n"
    "        self.assertEqual(add(0, 0), 0)\n\n    def test_one(self):\n        self.assertEqual(add(1, 0), 1)\n\n"
    "    def test_two(self):\n",
)


@click.command()
@click.option(
    "--inflate", default=138.0, show_default=True, help="Million parameters the target costs like; 0: as it is."
)
@click.option("--max-tokens", default=96, show_default=True, help="Tokens per completion.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one JSON object.")
def command(inflate: float, max_tokens: int, as_json: bool) -> None:
    """Start a local Ray, deploy every part as a replica of its own, stream a completion, compare, shut down.

    The embedded target has 10 million parameters and is cheaper than any real one. --inflate pads it with zeros:
    it computes the same function at the price of a larger model, so that the comparison means something.
    """
    from rich.console import Console

    from deployments import launch
    from specserve.bench import report
    from specserve.bench import serve as bench
    from specserve.bench.load import Workload, run_turn
    from specserve.bench.sample import Arm
    from specserve.config import parse

    began = time.perf_counter()
    out = Console(stderr=as_json, highlight=False)
    config = launch.load(launch.CONFIGS / "demo.yaml")
    with ExitStack() as stack:
        if inflate:
            config = bench.inflated(config, inflate, stack)
        server = stack.enter_context(
            launch.up(_on_free_ports(config), lambda line: out.print(f"[dim]{_since(began)}  {line}[/dim]"))
        )
        first_token_s = _stream(server.grpc, PROMPTS[0], max_tokens, began, out)
        ways = bench.server_arms(parse(config["applications"][0]["args"]))
        arms = {way.name: Arm(way.name) for way in ways}
        load = Workload(max_tokens=max_tokens, ignore_eos=True)
        for prompt in PROMPTS:
            for way in ways:
                asyncio.run(run_turn(server.grpc, arms[way.name], way, [prompt], load, 1))
        out.print(f"[dim]{_since(began)}  shutting down[/dim]")
    figures: dict[str, Any] = {name: arm.figures() for name, arm in arms.items()}
    same = len({tuple(s.token_ids for s in arm.samples) for arm in arms.values()}) == 1
    out.print()
    report.show(figures, out)
    out.print(f"The text is {'the same' if same else 'NOT the same (near-ties of bf16)'} in every row.")
    out.print(f"First token {first_token_s:.1f} s after the start, everything in {time.perf_counter() - began:.1f} s.")
    if as_json:
        click.echo(json.dumps({"arms": figures, "first_token_s": first_token_s, "same_text": same}))


def _stream(address: str, prompt: str, max_tokens: int, began: float, out: Any) -> float:
    """Stream one completion with its accepted tokens marked; seconds from `began` to the first token."""
    from specserve.cli.show import Painter
    from specserve.transport.client import Client
    from specserve.types import Chunk

    first = 0.0
    painter = Painter(out)
    out.print("[dim]the prompt dim, the target's own tokens plain, accepted tokens in their drafter's colour:[/dim]\n")
    out.print(f"[dim]{prompt}[/dim]", end="", markup=True)
    with Client(address) as client:
        for event in client.stream(prompt, max_tokens=max_tokens, mode="on", private=True):
            if isinstance(event, Chunk) and not first:
                first = time.perf_counter() - began
            painter.show(event)
    painter.close()
    return first


def _on_free_ports(config: dict[str, Any]) -> dict[str, Any]:
    """A demo must not collide with a server that runs here already."""
    import socket

    config = copy.deepcopy(config)
    for options in ("http_options", "grpc_options"):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            config[options]["port"] = probe.getsockname()[1]
    return config


def _since(began: float) -> str:
    return f"{time.perf_counter() - began:5.1f} s"
