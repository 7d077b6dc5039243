"""Is it exact? Greedy texts of a deployed config against `transformers`' own generate, in fp32."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Sequence
from typing import Any

from specserve.bench.load import ServerArm, Workload, run_turn
from specserve.bench.peers import Transformers
from specserve.bench.sample import Arm
from specserve.bench.serve import Report
from specserve.config import model_dir, parse
from specserve.types import TokenIds


def run(
    config: dict[str, Any],
    prompts: Sequence[str],
    max_tokens: int,
    *,
    depths: Sequence[int] = (1, 4, 8),
    concurrency: Sequence[int] = (1, 4, 16),
    report: Report = lambda _: None,
) -> dict[str, Any]:
    """Every drafter and all together, at every depth and number of clients.

    Returns:
        how many texts were equal in each case, and every difference with its logit margin: how far the target's
        own best logit was above the other text's token where they parted (a near-tie of floating point is tiny).
    """
    from deployments import launch

    config = copy.deepcopy(config)
    config["applications"][0]["args"]["target"]["dtype"] = "float32"
    args = parse(config["applications"][0]["args"])
    load = Workload(max_tokens=max_tokens)
    peer = Transformers(
        model_dir(args.target.model),
        None,
        dtype="float32",
        assistant_dtype="float32",
        threads=args.target.threads,
        lookup_tokens=1,
    )
    reference = []
    for i, prompt in enumerate(prompts):
        reference.append(peer.generate("transformers generate", prompt, load).token_ids)
        if (i + 1) % 20 == 0:
            report(f"reference: {i + 1} of {len(prompts)} prompts")
    ways: list[tuple[str, tuple[str, ...]]] = [(name, (name,)) for name in args.drafters]
    if len(ways) > 1:
        ways.append((" + ".join(args.drafters), tuple(args.drafters)))
    cases: list[dict[str, Any]] = []
    with launch.up(config, report) as server:
        for name, drafters in ways:
            for depth in depths:
                for clients in concurrency:
                    arm = Arm(name)
                    way = ServerArm(name, "on", drafters, depth)
                    asyncio.run(run_turn(server.grpc, arm, way, prompts, load, clients))
                    got = [sample.token_ids for sample in arm.samples]
                    differences = [
                        _difference(peer, i, prompts[i], want, have)
                        for i, (want, have) in enumerate(zip(reference, got, strict=True))
                        if want != have
                    ]
                    case = {"drafters": name, "max_draft_tokens": depth, "clients": clients}
                    cases.append({**case, "equal": len(got) - len(differences), "differences": differences})
                    report(f"{name}, depth {depth}, {clients} clients: {cases[-1]['equal']} of {len(got)} equal")
    return {"prompts": len(prompts), "max_tokens": max_tokens, "cases": cases}


def _difference(peer: Transformers, index: int, prompt: str, want: TokenIds, have: TokenIds) -> dict[str, Any]:
    at = next((i for i, (a, b) in enumerate(zip(want, have, strict=False)) if a != b), min(len(want), len(have)))
    if at == len(want) or at == len(have):
        return {"prompt": index, "token": at, "margin": None}
    logits = peer.logits_after(prompt, want[:at])
    return {"prompt": index, "token": at, "margin": float(logits[want[at]] - logits[have[at]])}


def markdown(results: dict[str, Any]) -> str:
    """A line per case."""
    lines = ["| drafters | max_draft_tokens | clients | equal to generate |", "|---|---:|---:|---:|"]
    for case in results["cases"]:
        equal = f"{case['equal']} of {results['prompts']}"
        lines.append(f"| {case['drafters']} | {case['max_draft_tokens']} | {case['clients']} | {equal} |")
    margins = [d["margin"] for case in results["cases"] for d in case["differences"]]
    if margins:
        lines.append(f"\nLogit margins where texts part: {margins}")
    return "\n".join(lines) + "\n"
