"""The Router deployment: the gRPC ingress. Protobuf and status codes stop here; the work is `serving.router`'s."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import aclosing, contextmanager
from typing import Any

from grpc_health.v1 import health_pb2
from ray.serve.grpc_util import RayServegRPCContext
from ray.serve.handle import DeploymentHandle
from tokenizers import Tokenizer

import specserve
from deployments.leases import ServePort
from deployments.worker import tls_files
from specserve.config import AppConfig, ArConfig, model_dir
from specserve.errors import ConfigError, SpecserveError
from specserve.serving.router import Router as SessionRouter
from specserve.serving.settings import DrafterPool, Settings
from specserve.transport import convert
from specserve.transport.status import code_of
from specserve.types import Event, ModelFacts
from specserve.v1 import generation_pb2 as pb

VERIFIER_POOL = "target"


class Router:
    """One replica serves many sessions, each as one asyncio task."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, config: AppConfig, secret: str, verifier: DeploymentHandle, drafters: dict[str, DeploymentHandle]
    ) -> None:
        self._config = config
        self._facts: ModelFacts = await verifier.facts.remote()
        path = model_dir(config.target.model) / "tokenizer.json"
        if not path.is_file():
            raise ConfigError(f"target.model must have a tokenizer.json; {path.parent} has none")
        port = ServePort(
            {VERIFIER_POOL: verifier, **drafters},
            router=secrets.token_hex(8),
            secret=secret,
            tls=tls_files(config.data_plane.tls),
        )
        self._router = SessionRouter(port, self._facts, Tokenizer.from_file(str(path)), settings(config))

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
            stats=self._router.stats.summary(),
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
            DrafterPool(name, name, d.max_draft_tokens, laws=isinstance(d, ArConfig))
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
