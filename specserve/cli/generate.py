"""`specserve generate`: stream one completion from a running server."""

from __future__ import annotations

import json
import sys
from typing import Any, TextIO

import click

from specserve.cli.show import Painter


@click.command()
@click.argument("prompt", required=False)
@click.option("--address", default="localhost:9000", show_default=True, help="gRPC address of the server.")
@click.option("--max-tokens", default=128, show_default=True, help="Most tokens to emit.")
@click.option("--temperature", default=0.0, show_default=True, help="0 is greedy.")
@click.option("--top-p", default=1.0, show_default=True, help="Nucleus, in (0, 1].")
@click.option("--top-k", default=0, show_default=True, help="0 is off.")
@click.option("--seed", type=int, help="Fixes the text for temperature > 0.")
@click.option("--stop", multiple=True, help="Ends the text before this string; repeatable.")
@click.option(
    "--drafter", "drafters", multiple=True, help="Drafter pool to ask; repeatable. Default: the server's choice."
)
@click.option("--speculation", type=click.Choice(["auto", "on", "off"]), default="auto", show_default=True)
@click.option("--max-draft-tokens", type=int, help="Deepest draft, in tokens.")
@click.option(
    "--reference", type=click.File(), help="File with text that the output may repeat; the target never sees it."
)
@click.option("--tenant", default="", help="Draft from this tenant's past outputs.")
@click.option("--private", is_flag=True, help="Keep nothing of this request after it ends.")
@click.option("--json-schema", help="The output is JSON that satisfies this schema.")
@click.option("--regex", help="The output matches this regular expression.")
@click.option("--choice", multiple=True, help="The output is one of these; repeatable.")
@click.option("--rule", help="Verification rule; see `specserve info`.")
@click.option("--timeout", "timeout_s", type=float, help="Seconds until the request is given up.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole answer as one JSON object.")
def command(
    prompt: str | None,
    address: str,
    max_tokens: int,
    temperature: float,
    top_p: float,
    top_k: int,
    seed: int | None,
    stop: tuple[str, ...],
    drafters: tuple[str, ...],
    speculation: str,
    max_draft_tokens: int | None,
    reference: TextIO | None,
    tenant: str,
    private: bool,
    json_schema: str | None,
    regex: str | None,
    choice: tuple[str, ...],
    rule: str | None,
    timeout_s: float | None,
    as_json: bool,
) -> None:
    """Stream a completion of PROMPT (standard input when absent); accepted tokens are marked."""
    from specserve.transport.client import Client, request

    sampling: dict[str, Any] = {} if seed is None else {"seed": seed}
    made = request(
        prompt if prompt is not None else sys.stdin.read(),
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        stop=stop,
        mode=speculation,
        drafters=drafters,
        max_draft_tokens=max_draft_tokens,
        reference="" if reference is None else reference.read(),
        tenant=tenant,
        private=private,
        rule=rule,
        json_schema=json_schema,
        regex=regex,
        choice=choice or None,
        timeout_s=timeout_s,
        **sampling,
    )
    with Client(address) as client:
        if as_json:
            answer = client.generate(made)
            usage = answer.usage
            drafted = {name: [d.drafted, d.accepted] for name, d in usage.drafters.items()}
            click.echo(
                json.dumps(
                    {
                        "text": answer.text,
                        "token_ids": answer.token_ids,
                        "finish_reason": answer.finish_reason.value,
                        "seed": made.sampling.seed,
                        "emitted_tokens": usage.emitted_tokens,
                        "rounds": usage.rounds,
                        "drafted_accepted": drafted,
                    }
                )
            )
            return
        painter = Painter()
        for event in client.stream(made):
            painter.show(event)
        painter.close()
