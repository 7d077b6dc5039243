"""The Drafter deployment: one pool per configured drafter, of any kind."""

from deployments.worker import Worker, limit_threads
from specserve.config import AppConfig, ArConfig, DrafterConfig, NgramConfig, model_dir
from specserve.serving.backend import Backend


class Drafter(Worker):
    """One replica drafts for its leases' sessions in batches. Only kinds with a model load torch."""

    async def __init__(self, pool: str, config: AppConfig, secret: str) -> None:  # type: ignore[misc]  # Serve awaits it
        await self._start(pool, config, secret, lambda: build_drafter(pool, config.drafters[pool]))


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
            limit_threads(config.threads)
            import torch

            from specserve.draft.ar import ArDrafter
            from specserve.engine import Engine

            torch.set_num_threads(config.threads)
            engine = Engine(
                model_dir(config.model),
                device=config.device,
                dtype=config.dtype,
                slots=config.slots,
                max_nodes=config.max_draft_tokens,
            )
            return ArDrafter(engine, name=name, max_tokens=config.max_draft_tokens)
