"""The Drafter deployment: one pool per configured drafter, of any kind."""

import json
from pathlib import Path

from deployments.worker import Worker
from specserve.config import AppConfig, ArConfig, DrafterConfig, NgramConfig, model_dir
from specserve.errors import ConfigError
from specserve.serving.backend import Backend


class Drafter(Worker):
    """One replica drafts for its leases' sessions in batches. Only kinds with a model load torch."""

    async def __init__(self, pool: str, config: AppConfig, secret: str) -> None:  # type: ignore[misc]  # Serve awaits it
        drafter = config.drafters[pool]
        if isinstance(drafter, ArConfig):
            check_vocabulary(pool, model_dir(drafter.model), model_dir(config.target.model))
        threads = drafter.threads if isinstance(drafter, ArConfig) else None
        await self._start(pool, config, secret, lambda: build_drafter(pool, drafter), threads)


def build_drafter(name: str, config: DrafterConfig) -> Backend:
    """The backend of a configured drafter."""
    match config:
        case NgramConfig():
            from specserve.draft.ngram import NgramDrafter

            return NgramDrafter(
                name=name,
                max_ngram=config.max_ngram,
                rows=config.rows,
                max_tokens=config.max_draft_tokens,
                max_sessions=4 * config.max_sessions,
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
