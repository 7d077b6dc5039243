"""The Router deployment: the gRPC ingress. Protobuf and status codes stop here; the work is `serving.router`'s."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, contextmanager
from typing import Any

from grpc_health.v1 import health_pb2
from ray.serve.grpc_util import RayServegRPCContext
from ray.serve.handle import DeploymentHandle
from tokenizers import Tokenizer

import specserve
from deployments.autoscaling import LATE
from deployments.leases import ServePort
from deployments.metrics import Exporter, every_second
from deployments.worker import step_back, tls_files
from specserve.config import AppConfig, ArConfig, HeadsConfig, NgramConfig, inside, model_dir
from specserve.errors import ConfigError, InvalidRequest, SpecserveError
from specserve.serving.infilling import InfillRouter
from specserve.serving.load import RouterMeter
from specserve.serving.metrics import DATA_PLANE, ROUTER, RouterSamples, Sample
from specserve.serving.router import Router as SessionRouter
from specserve.serving.settings import DrafterPool, Settings
from specserve.transport import convert, convert_infill
from specserve.transport.status import code_of
from specserve.types import Event, InfillEvent, InfillFacts, ModelFacts
from specserve.v1 import generation_pb2 as pb

VERIFIER_POOL, INFILL_POOL = "target", "infill"


class Router:
    """One replica serves many sessions, each as one asyncio task."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self,
        config: AppConfig,
        secret: str,
        verifier: DeploymentHandle,
        drafters: dict[str, DeploymentHandle],
        infill: DeploymentHandle | None = None,
    ) -> None:
        self._config = config
        self._facts: ModelFacts = await verifier.facts.remote()
        path = model_dir(config.target.model) / "tokenizer.json"
        if not path.is_file():
            raise ConfigError(f"target.model must have a tokenizer.json; {path.parent} has none")
        self._port = ServePort(
            {VERIFIER_POOL: verifier, **drafters, **({} if infill is None else {INFILL_POOL: infill})},
            router=secrets.token_hex(8),
            secret=secret,
            tls=tls_files(config.data_plane.tls),
        )
        self._router = SessionRouter(self._port, self._facts, Tokenizer.from_file(str(path)), settings(config))
        self._infill = None if infill is None else await self._open_infill(infill)
        self._meter, self._exporter = RouterMeter(time.monotonic()), Exporter((*ROUTER, *DATA_PLANE))
        self._samples = RouterSamples(self._router.stats)
        self._pushing = asyncio.ensure_future(every_second(self._push))
        step_back()

    async def _push(self) -> None:
        self._meter.read(self._router.stats, time.monotonic())
        self._exporter.push(self._samples)
        sent, received = self._port.traffic.sent, self._port.traffic.received
        self._exporter.push(
            (Sample("specserve_data_plane_sent_bytes", sent), Sample("specserve_data_plane_received_bytes", received))
        )

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What deployments.autoscaling.Policy scales the drafters by."""
        load = self._meter.load
        late = {f"{LATE}{name}": rate for name, rate in load.late_per_s.items()}
        return {"rounds_per_s": load.rounds_per_s, "draft_wait": load.draft_wait, **late}

    async def Generate(self, raw: bytes | int, grpc_context: RayServegRPCContext) -> pb.GenerateResponse:
        with _status(grpc_context):
            request = convert.parse_generate(raw, _request_id(grpc_context))
            async with aclosing(self._router.generate(request)) as events:
                return convert.encode_response([event async for event in events], request.sampling.seed)

    async def StreamGenerate(
        self, raw: bytes | int, grpc_context: RayServegRPCContext
    ) -> AsyncIterator[pb.StreamGenerateResponse]:
        with _status(grpc_context):
            request = convert.parse_stream_generate(raw, _request_id(grpc_context))
            event: Event
            async with aclosing(self._router.generate(request)) as events:
                async for event in events:
                    yield convert.encode_event(event, request.sampling.seed)

    async def _open_infill(self, handle: DeploymentHandle) -> InfillRouter:
        assert self._config.infill is not None
        path = model_dir(self._config.infill.model) / "tokenizer.json"
        if not path.is_file():
            raise ConfigError(f"infill.model must have a tokenizer.json; {path.parent} has none")
        facts: InfillFacts = await handle.facts.remote()
        return InfillRouter(self._port, INFILL_POOL, facts, Tokenizer.from_file(str(path)), settings(self._config))

    async def Infill(self, raw: bytes | int, grpc_context: RayServegRPCContext) -> pb.InfillResponse:
        with _status(grpc_context):
            request = convert_infill.parse_infill(raw, _request_id(grpc_context))
            async with aclosing(self._filler().infill(request)) as events:
                collected = [event async for event in events]
            return convert_infill.encode_infill_response(collected, request.sampling.seed)

    async def StreamInfill(
        self, raw: bytes | int, grpc_context: RayServegRPCContext
    ) -> AsyncIterator[pb.StreamInfillResponse]:
        with _status(grpc_context):
            request = convert_infill.parse_stream_infill(raw, _request_id(grpc_context))
            event: InfillEvent
            async with aclosing(self._filler().infill(request)) as events:
                async for event in events:
                    yield convert_infill.encode_infill_event(event, request.sampling.seed)

    def _filler(self) -> InfillRouter:
        if self._infill is None:
            raise InvalidRequest("segments", "cannot be filled: this server's config has no infill pool", None)
        return self._infill

    async def GetServerInfo(self, raw: bytes | int) -> pb.GetServerInfoResponse:
        config, facts = self._config, self._facts
        return pb.GetServerInfoResponse(
            version=specserve.__version__,
            model=facts.name,
            vocab_size=facts.vocab_size,
            context_length=facts.context_len,
            eos_token_ids=facts.eos_token_ids,
            drafters=[
                pb.DrafterInfo(name=name, kind=d.kind, max_draft_tokens=d.max_draft_tokens)
                for name, d in config.drafters.items()
            ],
            rules=self._router.settings.rules,
            default_rule=config.rule,
            max_sessions=config.router.max_sessions,
            max_waiting=config.router.max_waiting,
            stats=self._router.measurements(),
            infill=self._infill_info(),
        )

    def _infill_info(self) -> pb.InfillInfo | None:
        if self._infill is None:
            return None
        facts = self._infill.facts
        return pb.InfillInfo(
            model=facts.name, context_length=facts.context_len, open_gaps=facts.stop_token_id is not None
        )

    # grpc.health.v1: a router that answers has reached a verifier.

    async def Check(self, request: health_pb2.HealthCheckRequest) -> Any:
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)

    async def Watch(self, request: health_pb2.HealthCheckRequest) -> AsyncIterator[Any]:
        yield health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)
        await asyncio.Event().wait()


def settings(config: AppConfig) -> Settings:
    """The router's part of the configuration."""
    router = config.router
    return Settings(
        verifier_pool=VERIFIER_POOL,
        drafters=tuple(
            DrafterPool(
                name,
                name,
                d.max_draft_tokens,
                laws=isinstance(d, ArConfig | HeadsConfig),
                copies=isinstance(d, NgramConfig),
                inside=inside(d),
                features=(-1,) if isinstance(d, HeadsConfig) and not inside(d) else (),
            )
            for name, d in config.drafters.items()
        ),
        rule=config.rule,
        max_nodes=config.target.max_draft_nodes,
        max_sessions=router.max_sessions,
        max_waiting=router.max_waiting,
        admission_timeout_s=router.admission_timeout_s,
        lease_timeout_s=router.lease_timeout_s,
        draft_deadline_s=router.draft_deadline_ms / 1000,
        request_timeout_s=router.request_timeout_s,
    )


@contextmanager
def _status(context: RayServegRPCContext) -> Any:
    """Our own errors leave with their status code and message."""
    try:
        yield
    except SpecserveError as error:
        context.set_code(code_of(error))
        context.set_details(str(error))
        raise


def _request_id(context: RayServegRPCContext) -> str:
    return dict(context.invocation_metadata()).get("request_id") or secrets.token_hex(8)
