"""The Drafter deployment: one pool per configured drafter, of any kind."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from deployments.worker import Worker
from specserve.config import (
    AppConfig,
    ArConfig,
    DrafterConfig,
    HeadsConfig,
    NgramConfig,
    TargetConfig,
    model_dir,
    table_file,
)
from specserve.errors import ConfigError
from specserve.fingerprint import fingerprint
from specserve.serving.backend import Backend

if TYPE_CHECKING:
    from torch import Tensor

    from specserve.draft.heads.drafting import HeadsDrafting


class Drafter(Worker):
    """One replica drafts for its leases' sessions in batches. Only kinds with a model load torch."""

    async def __init__(self, pool: str, config: AppConfig, secret: str) -> None:  # type: ignore[misc]  # Serve awaits it
        drafter = config.drafters[pool]
        if isinstance(drafter, ArConfig):
            check_vocabulary(pool, model_dir(drafter.model), model_dir(config.target.model))
        threads = None if isinstance(drafter, NgramConfig) else drafter.threads
        await self._start(pool, config, secret, lambda: build_drafter(pool, drafter, config.target), threads)


def build_drafter(name: str, config: DrafterConfig, target: TargetConfig) -> Backend:
    """The backend of a configured drafter for that target. Raises ConfigError."""
    match config:
        case NgramConfig():
            from specserve.draft.ngram import NgramDrafter
            from specserve.draft.ngram.table import load_table

            table = None
            if config.table is not None:
                made_for = fingerprint(model_dir(target.model))
                try:
                    table = load_table(table_file(config.table), made_for)
                except ConfigError as error:
                    raise ConfigError(f"drafters.{name}.{error}") from error
            return NgramDrafter(
                name=name,
                strategies=config.strategies,
                table=table,
                rows=config.rows,
                context_rows=config.context_rows,
                max_ngram=config.max_ngram,
                max_tokens=config.max_draft_tokens,
                max_sessions=4 * config.max_sessions,
                memory_bytes=int(config.memory_mb * (1 << 20)),
            )
        case ArConfig():
            from specserve.draft.ar import ArDrafter
            from specserve.engine import Engine

            engine = Engine(
                model_dir(config.model),
                device=config.device,
                dtype=config.dtype,
                slots=config.slots,
                max_nodes=max(config.max_draft_tokens, config.max_draft_nodes),
            )
            return ArDrafter(
                engine,
                name=name,
                max_tokens=config.max_draft_tokens,
                branches=config.branches,
                max_nodes=config.max_draft_nodes,
                min_confidence=config.min_confidence,
            )
        case HeadsConfig():
            from specserve.draft.heads.worker import HeadsDrafter
            from specserve.engine.hidden import read_unembedding
            from specserve.engine.load import parse_device, parse_dtype

            unembedding = read_unembedding(model_dir(target.model))
            unembedding = unembedding.to(parse_device(config.device), parse_dtype(target.dtype))
            return HeadsDrafter(build_heads(name, config, unembedding), *unembedding.shape)


def build_heads(name: str, config: HeadsConfig, unembedding: "Tensor") -> "HeadsDrafting":
    """What drafts from hidden states, in a verifier or in a pool. Raises ConfigError when it is not of this target."""
    from specserve.draft.heads.drafting import HeadsDrafting
    from specserve.draft.heads.model import load_heads

    return HeadsDrafting(
        load_heads(model_dir(config.model)),
        unembedding,
        name=name,
        max_tokens=config.max_draft_tokens,
        branches=config.branches,
        max_nodes=config.max_draft_nodes,
        min_confidence=config.min_confidence,
    )


def check_vocabulary(name: str, drafter: Path, target: Path) -> None:
    """A drafter speaks in the target's token ids. Raises ConfigError when the two tokenizers are not the same.

    A model may pad its vocabulary beyond its tokenizer's; ids that the target lacks are dropped by the router.
    """
    vocabularies = [path / "tokenizer.json" for path in (drafter, target)]
    if not vocabularies[0].is_file():
        return  # nothing to compare: the configuration is taken at its word
    mine, theirs = (json.loads(path.read_text())["model"]["vocab"] for path in vocabularies)
    if mine != theirs:
        raise ConfigError(
            f"drafters.{name}.model must have the target's tokenizer: {drafter} has {len(mine)} tokens, "
            f"{target} has {len(theirs)}" + (", not the same ones" if len(mine) == len(theirs) else "")
        )
