"""The configuration: `applications[0].args` of a Ray Serve config file. Unknown keys are errors."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from specserve.errors import ConfigError
from specserve.types import NGRAM_STRATEGIES, RULES

Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Strict(BaseModel):
    """Frozen, and without unknown keys."""

    model_config = ConfigDict(frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _no_unknown_keys(cls, data: Any) -> Any:
        for key in data if isinstance(data, Mapping) else ():
            if key not in cls.model_fields:
                near = difflib.get_close_matches(str(key), cls.model_fields, n=1, cutoff=0)
                raise ValueError(f"{key!r} is no known key; did you mean {near[0]!r}?")
        return data


class Scaling(Strict):
    """How many replicas. `min` equal to `max` fixes the number; 0 lets a drafter pool scale to nothing.

    A pool follows the signal that asks for most replicas; `target_` is what each of them aims at.
    """

    min: Annotated[int, Field(ge=0)] = 1
    max: Positive = 1
    target_sessions: Annotated[float, Field(gt=0)] = 8.0  # open leases per replica
    upscale_delay_s: Annotated[float, Field(ge=0)] = 5.0  # a signal must ask for so long
    downscale_delay_s: Annotated[float, Field(ge=0)] = 60.0
    hysteresis: Share = 0.2  # a pool shrinks only when it would still have this share of room to spare
    cooldown_s: Annotated[float, Field(ge=0)] = 30.0  # after growing, no shrinking for so long

    @model_validator(mode="after")
    def _ordered(self) -> Scaling:
        if self.min > self.max:
            raise ValueError(f"replicas.min must be at most replicas.max; got {self.min} > {self.max}")
        return self


class VerifierScaling(Scaling):
    """Verifiers follow sessions, queue delay and pool occupancy."""

    target_queue_ms: Annotated[float, Field(gt=0)] = 200.0  # mean wait of a call before its forward pass
    target_occupancy: Annotated[float, Field(gt=0, le=1)] = 0.8  # share of the slots promised to sessions


class DrafterScaling(Scaling):
    """Drafters follow sessions and their own work; where they are busy, also what the rounds miss for want of them."""

    target_busy: Annotated[float, Field(gt=0, le=1)] = 0.7  # share of time spent drafting
    target_late: Annotated[float, Field(gt=0, le=1)] = 0.1  # share of rounds that go on without an awaited draft
    target_wait: Annotated[float, Field(gt=0, le=1)] = 0.5  # share of a round's time spent waiting for drafts


class Placement(Strict):
    """What one replica needs from a node, as Ray counts it."""

    num_cpus: Annotated[float, Field(ge=0)] = 0.5
    num_gpus: Annotated[float, Field(ge=0)] = 0.0
    accelerator_type: str | None = None
    labels: dict[str, str] = {}  # node label selector, e.g. {"specserve.dev/role": "verifier"}
    resources: dict[str, float] = {}


class _Worker(Strict):
    replicas: Scaling = Scaling()
    placement: Placement = Placement()
    threads: Positive = 1  # torch and OpenMP threads of one replica
    max_sessions: Positive = 64  # open leases one replica takes
    graceful_shutdown_s: Seconds = 60.0  # longer than the longest stream you promise to finish


class _Model(Strict):
    model: str  # a local Hugging Face directory, or zoo:NAME for an embedded model
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    slots: Positive = 32_768  # tokens the KV pool holds


class TargetConfig(_Worker, _Model):
    """The verifier pool."""

    replicas: VerifierScaling = VerifierScaling()
    prefill_chunk: Positive = 512
    max_batch_tokens: Positive = 2048
    queue_timeout_s: Seconds = 30.0  # how long a session waits for room in the pool
    max_draft_nodes: Annotated[int, Field(ge=1, le=256)] = 64  # most drafted tokens of one session and round


class _Drafter(_Worker):
    replicas: DrafterScaling = DrafterScaling()


class NgramConfig(_Drafter):
    """Learning-free drafting: from the request's own text, past outputs and tables of the target's bigrams."""

    kind: Literal["ngram"]
    max_draft_tokens: Annotated[int, Field(ge=1, le=64)] = 12
    strategies: Annotated[tuple[Literal[NGRAM_STRATEGIES], ...], Field(min_length=1)] = (  # type: ignore[valid-type]
        "context",
        "suffix",
        "bigram",
        "recycled",
    )
    table: str | None = None  # file of `specserve train ngram`, or zoo:ngram; without one, no bigram rows
    max_ngram: Annotated[int, Field(ge=1, le=4)] = 3  # agreement that the context strategy looks at
    rows: Annotated[int, Field(ge=1, le=16)] = 4  # most rows of one strategy
    context_rows: Annotated[int, Field(ge=1, le=16)] = 4  # more of them crowd out the others and gain little
    memory_mb: Annotated[float, Field(ge=0)] = 64.0  # past outputs of all tenants together; 0 keeps none


class ArConfig(_Drafter, _Model):
    """A small autoregressive model with the target's vocabulary."""

    kind: Literal["ar"]
    max_draft_tokens: Annotated[int, Field(ge=1, le=64)] = 6
    branches: Annotated[int, Field(ge=1, le=16)] = 1  # chains per round, or most children of a node; 1 drafts a chain
    max_draft_nodes: Annotated[int, Field(ge=1, le=256)] = 64  # all branches together
    min_confidence: Annotated[float, Field(ge=0, lt=1)] = 0.0  # end a branch when its own probability falls below


class HeadsConfig(_Drafter):
    """Multi-token heads on the target's last hidden state, made by `specserve train heads`."""

    kind: Literal["heads"]
    model: str  # a local directory of heads, or zoo:NAME for embedded ones
    where: Literal["verifier", "remote"] = "verifier"  # in the verifiers' processes, or a pool of its own
    device: str = "cpu"  # of a pool of its own
    max_draft_tokens: Annotated[int, Field(ge=1, le=64)] = 7  # at most one less than the heads foresee
    branches: Annotated[int, Field(ge=1, le=16)] = 4  # chains per round, or most children of a node; 1 drafts a chain
    max_draft_nodes: Annotated[int, Field(ge=1, le=256)] = 16  # all branches together
    min_confidence: Annotated[float, Field(ge=0, lt=1)] = 0.03  # end a branch when its own probability falls below


DrafterConfig = Annotated[NgramConfig | ArConfig | HeadsConfig, Field(discriminator="kind")]


class InfillConfig(_Worker):
    """The pool of any-subset models that fill gaps. They run in float32: the two streams lose too much in less."""

    model: str = "zoo:infill"  # a local Hugging Face directory of an XLNetLMHeadModel, or zoo:infill
    device: str = "cpu"
    context: Positive | None = None  # most tokens of a filled sequence; unset: the model's own bound
    max_sessions: Positive = 16  # each holds a seat of `context` tokens in the cache


class RouterConfig(Strict):
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


class TlsConfig(Strict):
    """PEM files of the data plane, the same paths on every node."""

    certificate: str
    key: str
    authority: str


class DataPlaneConfig(Strict):
    """Streams between routers and workers."""

    secret: str | None = None  # neither this nor secret_env: drawn at deployment, anew with every deploy
    secret_env: Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")] | None = None  # variable that holds the secret
    tls: TlsConfig | None = None

    @model_validator(mode="after")
    def _one_secret(self) -> DataPlaneConfig:
        if self.secret is not None and self.secret_env is not None:
            raise ValueError("only one of secret and secret_env may be given; got both")
        return self

    def shared_secret(self) -> str | None:
        """The configured secret, None when one is to be drawn. Raises ConfigError when its variable is empty here."""
        if self.secret_env is None:
            return self.secret
        if not (secret := os.environ.get(self.secret_env)):
            raise ConfigError(f"data_plane.secret_env must name a variable set on every node; got {self.secret_env!r}")
        return secret


class AutoscalingConfig(Strict):
    """What every pool's scaling goes by. A spike is seen after about `report_interval_s`, in full after `window_s`."""

    report_interval_s: Annotated[float, Field(ge=0.1)] = 1.0  # between two reports of a replica
    window_s: Seconds = 10.0  # signals are means over so long

    @model_validator(mode="after")
    def _ordered(self) -> AutoscalingConfig:
        if self.window_s <= self.report_interval_s:
            raise ValueError(
                f"window_s must be longer than report_interval_s {self.report_interval_s:g}; got {self.window_s:g}"
            )
        return self


class AppConfig(Strict):
    """Everything specserve needs to know."""

    target: TargetConfig
    drafters: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,31}$")], DrafterConfig] = {}
    infill: InfillConfig | None = None  # without it, requests to fill gaps are refused
    router: RouterConfig = RouterConfig()
    data_plane: DataPlaneConfig = DataPlaneConfig()
    autoscaling: AutoscalingConfig = AutoscalingConfig()
    rule: Literal[RULES] = "coupled"  # type: ignore[valid-type]  # of requests that name none

    @property
    def parts(self) -> list[TargetConfig | DrafterConfig | InfillConfig | RouterConfig]:
        """Every pool of replicas."""
        infill = [] if self.infill is None else [self.infill]
        return [self.target, *self.pools.values(), *infill, self.router]

    @property
    def pools(self) -> dict[str, DrafterConfig]:
        """Drafters that have replicas of their own."""
        return {name: d for name, d in self.drafters.items() if not inside(d)}

    @property
    def inside(self) -> tuple[str, HeadsConfig] | None:
        """The heads in the verifiers' processes, and their name."""
        return next(((name, d) for name, d in self.drafters.items() if isinstance(d, HeadsConfig) and inside(d)), None)

    @model_validator(mode="after")
    def _one_inside(self) -> AppConfig:
        names = [name for name, drafter in self.drafters.items() if inside(drafter)]
        if len(names) > 1:
            raise ValueError(f"drafters must have at most one with where: verifier; got {', '.join(names)}")
        return self

    @model_validator(mode="after")
    def _names_apart(self) -> AppConfig:
        taken = ("target", *(["infill"] if self.infill is not None else []))
        for name in taken:
            if name in self.drafters:
                raise ValueError(f"drafters must not have the name of another pool, {' or '.join(taken)}; got {name!r}")
        return self

    @model_validator(mode="after")
    def _drafts_fit(self) -> AppConfig:
        most = self.target.max_draft_nodes
        for name, drafter in self.drafters.items():
            nodes = 0 if isinstance(drafter, NgramConfig) or drafter.branches == 1 else drafter.max_draft_nodes
            if max(nodes, drafter.max_draft_tokens) > most:
                given = max(nodes, drafter.max_draft_tokens)
                raise ValueError(f"drafters.{name} must draft at most target.max_draft_nodes {most}; got {given}")
        return self


def inside(drafter: DrafterConfig) -> bool:
    """Whether the verifiers themselves draft so."""
    return isinstance(drafter, HeadsConfig) and drafter.where == "verifier"


def parse(args: Mapping[str, Any]) -> AppConfig:
    """`applications[0].args` -> AppConfig.

    Raises:
        ConfigError: a line for each bad key: its bound and value, or for an unknown key the nearest known one.
    """
    try:
        return AppConfig.model_validate(args)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(dict(e)) for e in error.errors())) from error


def table_file(table: str) -> Path:
    """The file of a configured table. Raises ConfigError when there is none."""
    if table.startswith("zoo:"):
        from specserve import zoo

        return zoo.table(table.removeprefix("zoo:"))
    path = Path(table).expanduser()
    if not path.is_file():
        raise ConfigError(f"table must be a file of `specserve train ngram`, or zoo:NAME; got {table!r}")
    return path


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
