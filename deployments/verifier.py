"""The Verifier deployment: the target model over its token pool."""

from deployments.drafter import build_heads
from deployments.worker import Worker
from specserve.config import AppConfig, HeadsConfig, model_dir
from specserve.serving.backend import Backend
from specserve.types import ModelFacts


class Verifier(Worker):
    """One replica holds the whole target and serves its leases' sessions in batches."""

    async def __init__(self, config: AppConfig, secret: str) -> None:  # type: ignore[misc]  # Serve awaits it
        await self._start("target", config, secret, lambda: self._build(config), config.target.threads)

    def _build(self, config: AppConfig) -> Backend:
        target = config.target
        from specserve.engine import Engine
        from specserve.engine.grammar import Grammars
        from specserve.engine.verifier import Verifier as VerifierBackend

        heads = config.inside
        features = any(isinstance(drafter, HeadsConfig) for drafter in config.drafters.values())
        engine = Engine(
            model_dir(target.model),
            device=target.device,
            dtype=target.dtype,
            slots=target.slots,
            max_nodes=target.max_draft_nodes,
            hidden=features,
        )
        self._facts = engine.facts()
        return VerifierBackend(
            engine,
            prefill_chunk=target.prefill_chunk,
            max_batch_tokens=target.max_batch_tokens,
            queue_timeout_s=target.queue_timeout_s,
            grammars=Grammars(model_dir(target.model) / "tokenizer.json", self._facts),
            drafter=None if heads is None else build_heads(*heads, engine.unembedding()),
        )

    async def facts(self) -> ModelFacts:
        """What routers must know of the target."""
        return self._facts
