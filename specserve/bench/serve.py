"""`specserve bench CONFIG`: our server and its peers, interleaved in one run on the same weights and prompts."""

from __future__ import annotations

import asyncio
import copy
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from specserve.bench.load import ServerArm, Workload, run_turn
from specserve.bench.peers import Transformers
from specserve.bench.sample import Arm
from specserve.config import AppConfig, ArConfig, model_dir, parse

Report = Callable[[str], None]


def read(config: Path) -> dict[str, Any]:
    """A checked Serve config file. Raises ConfigError."""
    from deployments import launch

    return launch.load(config)


def inflated(config: dict[str, Any], millions: float, stack: ExitStack) -> dict[str, Any]:
    """The config with its target made to cost like one of `millions` parameters; the function stays the same."""
    from specserve.zoo.inflate import inflate

    config = copy.deepcopy(config)
    target = config["applications"][0]["args"]["target"]
    out = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="specserve-inflated-"))) / "target"
    inflate(model_dir(target["model"]), out, int(millions * 1e6))
    target["model"] = str(out)
    return config


def server_arms(config: AppConfig) -> list[ServerArm]:
    """Speculation off, each drafter alone, and the server's own choice among all."""
    arms = [ServerArm("off", "off"), *(ServerArm(name, "auto", (name,)) for name in config.drafters)]
    if len(config.drafters) > 1:
        arms.append(ServerArm("auto (all drafters)", "auto"))
    return arms


def run(
    config: dict[str, Any],
    prompts: Sequence[str],
    load: Workload,
    *,
    concurrency: Sequence[int] = (1,),
    peers: bool = True,
    warmup: int = 2,
    report: Report = lambda _: None,
) -> dict[str, Any]:
    """Deploy the config, run every arm on every prompt, and give the figures as JSON-able values.

    With one client the arms take turns prompt by prompt, so that drift of the machine falls on all alike; with
    more clients they take turns by thirds of the prompts, at least four prompts a client. Peers run with one client
    alone.
    """
    from deployments import launch

    args = parse(config["applications"][0]["args"])
    ways = {way.name: way for way in server_arms(args)}
    results: dict[str, Any] = {"levels": {}}
    with launch.up(config, report) as server:
        peer = _peer(args) if peers else None
        for clients in concurrency:
            arms = {name: Arm(name) for name in ways}
            if peer is not None and clients == 1:
                arms |= {name: Arm(name) for name in peer.arms}
            for way in ways.values():
                asyncio.run(run_turn(server.grpc, Arm("warm-up"), way, list(prompts[:warmup]) * clients, load, clients))
            # A turn keeps every client busy for several prompts: a short one would measure its own tail.
            step = 1 if clients == 1 else max(4 * clients, -(-len(prompts) // 3))
            for turn, start in enumerate(range(0, len(prompts), step)):
                part = prompts[start : start + step]
                order = list(arms)
                for name in order[turn % len(order) :] + order[: turn % len(order)]:
                    if name in ways:
                        asyncio.run(run_turn(server.grpc, arms[name], ways[name], part, load, clients))
                    elif peer is not None:
                        for prompt in part:
                            sample = peer.generate(name, prompt, load)
                            arms[name].samples.append(sample)
                            arms[name].wall_s += sample.wall_s
                report(f"{clients} client(s): {min(start + step, len(prompts))} of {len(prompts)} prompts")
            results["levels"][str(clients)] = {name: arm.figures() for name, arm in arms.items()}
            if clients == 1 and load.temperature == 0:
                results["identical_to_off"] = _identical(arms)
    return results


def _peer(args: AppConfig) -> Transformers:
    ar = next((d for d in args.drafters.values() if isinstance(d, ArConfig)), None)
    return Transformers(
        model_dir(args.target.model),
        None if ar is None else model_dir(ar.model),
        dtype=args.target.dtype,
        assistant_dtype=ar.dtype if ar is not None else args.target.dtype,
        threads=args.target.threads,
        lookup_tokens=10,
    )


def _identical(arms: dict[str, Arm]) -> dict[str, str]:
    """Texts equal to our own plain decoding, per arm (in bf16 near-ties may differ between batch shapes)."""
    reference = [s.token_ids for s in arms["off"].samples]
    return {
        name: f"{sum(a == s.token_ids for a, s in zip(reference, arm.samples, strict=True))} of {len(reference)}"
        for name, arm in arms.items()
    }
