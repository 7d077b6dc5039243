"""The configuration: `applications[0].args` of a Ray Serve config file. Unknown keys are errors."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from specserve.errors import ConfigError
from specserve.types import RULES

Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _no_unknown_keys(cls, data: Any) -> Any:
        for key in data if isinstance(data, Mapping) else ():
            if key not in cls.model_fields:
                near = difflib.get_close_matches(str(key), cls.model_fields, n=1, cutoff=0)
                raise ValueError(f"{key!r} is no known key; did you mean {near[0]!r}?")
        return data


class Scaling(_Strict):
    """How many replicas. `min` equal to `max` fixes the number; 0 lets a drafter pool scale to nothing."""

    min: Annotated[int, Field(ge=0)] = 1
    max: Positive = 1
    target_sessions: Annotated[float, Field(gt=0)] = 8.0  # open leases per replica that Serve aims at
    upscale_delay_s: Annotated[float, Field(ge=0)] = 5.0
    downscale_delay_s: Annotated[float, Field(ge=0)] = 60.0

    @model_validator(mode="after")
    def _ordered(self) -> Scaling:
        if self.min > self.max:
            raise ValueError(f"replicas.min must be at most replicas.max; got {self.min} > {self.max}")
        return self


class Placement(_Strict):
    """What one replica needs from a node, as Ray counts it."""

    num_cpus: Annotated[float, Field(ge=0)] = 0.5
    num_gpus: Annotated[float, Field(ge=0)] = 0.0
    accelerator_type: str | None = None
    labels: dict[str, str] = {}  # node label selector, e.g. {"specserve.dev/role": "verifier"}
    resources: dict[str, float] = {}


class _Worker(_Strict):
    replicas: Scaling = Scaling()
    placement: Placement = Placement()
    threads: Positive = 1  # torch and OpenMP threads of one replica
    max_sessions: Positive = 64  # open leases one replica takes
    graceful_shutdown_s: Seconds = 60.0  # longer than the longest stream you promise to finish


class _Model(_Strict):
    model: str  # a local Hugging Face directory, or zoo:NAME for an embedded model
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    slots: Positive = 32_768  # tokens the KV pool holds


class TargetConfig(_Worker, _Model):
    """The verifier pool."""

    prefill_chunk: Positive = 512
    max_batch_tokens: Positive = 2048
    queue_timeout_s: Seconds = 30.0  # how long a session waits for room in the pool
    max_draft_nodes: Annotated[int, Field(ge=1, le=256)] = 64  # most drafted tokens of one session and round


class NgramConfig(_Worker):
    """Learning-free drafting from the request's own text."""

    kind: Literal["ngram"]
    max_draft_tokens: Annotated[int, Field(ge=1, le=64)] = 12
    max_ngram: Annotated[int, Field(ge=1, le=8)] = 3
    rows: Annotated[int, Field(ge=1, le=16)] = 1


class ArConfig(_Worker, _Model):
    """A small autoregressive model with the target's vocabulary."""

    kind: Literal["ar"]
    max_draft_tokens: Annotated[int, Field(ge=1, le=64)] = 6
    branches: Annotated[int, Field(ge=1, le=16)] = 1  # chains per round, or most children of a node; 1 drafts a chain
    max_draft_nodes: Annotated[int, Field(ge=1, le=256)] = 64  # all branches together
    min_confidence: Annotated[float, Field(ge=0, lt=1)] = 0.0  # end a branch when its own probability falls below


DrafterConfig = Annotated[NgramConfig | ArConfig, Field(discriminator="kind")]


class RouterConfig(_Strict):
    """The ingress: sessions, rounds, admission."""

    replicas: Scaling = Scaling(target_sessions=64)
    placement: Placement = Placement()
    max_sessions: Positive = 256  # served at once by one router
    max_waiting: Annotated[int, Field(ge=0)] = 256  # let wait when full; more are refused
    admission_timeout_s: Seconds = 30.0
    lease_timeout_s: Seconds = 30.0  # longest wait for a verifier with room
    request_timeout_s: Seconds = 600.0  # of a request that names none
    draft_deadline_ms: Annotated[float, Field(gt=0)] = 100.0  # a round goes on without drafts that are later
    graceful_shutdown_s: Seconds = 60.0


class TlsConfig(_Strict):
    """PEM files of the data plane, the same paths on every node."""

    certificate: str
    key: str
    authority: str


class DataPlaneConfig(_Strict):
    """Streams between routers and workers."""

    secret: str | None = None  # None: drawn at deployment, anew with every deploy
    tls: TlsConfig | None = None


class AppConfig(_Strict):
    """Everything specserve needs to know."""

    target: TargetConfig
    drafters: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,31}$")], DrafterConfig] = {}
    router: RouterConfig = RouterConfig()
    data_plane: DataPlaneConfig = DataPlaneConfig()
    rule: Literal[RULES] = "coupled"  # type: ignore[valid-type]  # of requests that name none

    @model_validator(mode="after")
    def _drafts_fit(self) -> AppConfig:
        most = self.target.max_draft_nodes
        for name, drafter in self.drafters.items():
            nodes = drafter.max_draft_nodes if isinstance(drafter, ArConfig) and drafter.branches > 1 else 0
            if max(nodes, drafter.max_draft_tokens) > most:
                given = max(nodes, drafter.max_draft_tokens)
                raise ValueError(f"drafters.{name} must draft at most target.max_draft_nodes {most}; got {given}")
        return self


def parse(args: Mapping[str, Any]) -> AppConfig:
    """`applications[0].args` -> AppConfig.

    Raises:
        ConfigError: a line for each bad key: its bound and value, or for an unknown key the nearest known one.
    """
    try:
        return AppConfig.model_validate(args)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(dict(e)) for e in error.errors())) from error


def model_dir(model: str) -> Path:
    """The directory of a configured model. Raises ConfigError when there is none."""
    if model.startswith("zoo:"):
        from specserve import zoo

        return zoo.path(model.removeprefix("zoo:"))
    path = Path(model).expanduser()
    if not (path / "config.json").is_file():
        raise ConfigError(f"model must be a Hugging Face directory (with config.json) or zoo:NAME; got {model!r}")
    return path


def _explain(error: dict[str, Any]) -> str:
    where = ".".join(str(part) for part in error["loc"]) or "args"
    given = "" if error["type"] == "value_error" else f"; got {error['input']!r}"
    return f"{where}: {error['msg'].removeprefix('Value error, ')}{given}"
