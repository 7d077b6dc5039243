"""The Infill deployment: an any-subset model that fills gaps."""

from deployments.worker import Worker
from specserve.config import AppConfig, InfillConfig, model_dir
from specserve.serving.backend import Backend
from specserve.types import InfillFacts


class Infill(Worker):
    """One replica holds the whole model and fills its leases' gaps in batches."""

    async def __init__(self, config: AppConfig, secret: str) -> None:  # type: ignore[misc]  # Serve awaits it
        assert config.infill is not None
        infill = config.infill
        await self._start("infill", config, secret, lambda: self._build(infill), infill.threads)

    def _build(self, config: InfillConfig) -> Backend:
        from specserve.infill.decode import Decoder
        from specserve.infill.model import load
        from specserve.infill.worker import InfillBackend

        model = load(model_dir(config.model), device=config.device, context=config.context)
        self._facts = model.facts
        return InfillBackend(Decoder(model, seats=config.max_sessions + 4))  # a lease may end before its seat is free

    async def facts(self) -> InfillFacts:
        """What routers must know of the model."""
        return self._facts
