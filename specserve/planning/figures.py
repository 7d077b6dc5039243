"""What a plan starts from: what one replica takes and costs, who asks for how much, and what is good enough."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError, model_validator

from specserve.config import (
    AutoscalingConfig,
    DrafterScaling,
    Positive,
    Scaling,
    Seconds,
    Share,
    Strict,
    VerifierScaling,
)
from specserve.errors import ConfigError

MANY = 1 << 20  # replicas: no bound
Milliseconds = Annotated[float, Field(ge=0)]


class Replica(Strict):
    """What any replica costs, and what it can hold."""

    gpus: Annotated[float, Field(ge=0)] = 1.0
    price: Annotated[float, Field(ge=0)] = 0.0  # of one GPU and hour; of a replica without any, of the replica
    start_s: Annotated[float, Field(ge=0)] = 30.0  # from the decision until it serves
    max_sessions: Positive = 64  # open leases it takes
    replicas: Scaling = Scaling(max=MANY)

    @property
    def price_per_hour(self) -> float:
        return self.price * (self.gpus or 1.0)


class Target(Replica):
    """A verifier. A pass over n positions of b sessions takes step_ms + (b - 1) · session_ms + (n - b) · token_ms."""

    step_ms: Annotated[float, Field(gt=0)]  # of one position
    token_ms: Milliseconds  # each further position of a session
    session_ms: Milliseconds = 0.0  # each further session
    slots: Positive = 1 << 20  # tokens the KV pool holds
    prefill_chunk: Positive = 512
    max_batch_tokens: Positive = 2048
    replicas: VerifierScaling = VerifierScaling(max=MANY)

    def pass_ms(self, sessions: int, positions: int) -> float:
        return self.step_ms + (sessions - 1) * self.session_ms + (positions - sessions) * self.token_ms


class Drafter(Replica):
    """A drafter. Drafts of d tokens for b sessions take call_ms + d · step_ms + b · d · token_ms."""

    call_ms: Milliseconds = 0.0
    step_ms: Milliseconds
    token_ms: Milliseconds = 0.0
    acceptance: Annotated[tuple[Share, ...], Field(min_length=1)]  # share of drafts whose i-th token is accepted
    depth: Annotated[int, Field(ge=1)] | None = None  # of every draft; unset: what earns most at the load of the moment
    replicas: DrafterScaling = DrafterScaling(max=MANY)

    @property
    def survival(self) -> tuple[float, ...]:
        """S(i), which cannot grow: a token counts only when all before it were accepted."""
        kept: list[float] = []
        for share in self.acceptance:
            kept.append(min([share, *kept[-1:]]))
        return tuple(kept)


class Router(Replica):
    """The router's part of a round."""

    gpus: Annotated[float, Field(ge=0)] = 0.0
    max_sessions: Positive = 256
    max_waiting: Annotated[int, Field(ge=0)] = 256
    open_ms: Milliseconds = 8.0  # from a request's arrival until its leases are held
    call_ms: Milliseconds = 0.5  # a call's way to a worker and back
    message_ms: Milliseconds = 0.15  # CPU for one reply; a router handles them one after the other
    draft_deadline_ms: Annotated[float, Field(gt=0)] = 100.0
    lease_timeout_s: Seconds = 30.0
    replicas: Scaling = Scaling(target_sessions=64, max=MANY)


class Phase(Strict):
    """A stretch of the traffic: clients that ask again and again, or requests that come at random."""

    seconds: Seconds
    clients: Annotated[int, Field(ge=0)] | None = None
    requests_per_s: Annotated[float, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _one(self) -> Phase:
        if (self.clients is None) == (self.requests_per_s is None):
            raise ValueError("exactly one of clients and requests_per_s must be given")
        return self


class Traffic(Strict):
    """Who asks. Lengths are log-normal; `spread` is their standard deviation over their mean."""

    phases: Annotated[tuple[Phase, ...], Field(min_length=1)]
    prompt_tokens: Positive = 256
    output_tokens: Positive = 256
    spread: Annotated[float, Field(ge=0)] = 0.5


class Goals(Strict):
    """What a plan must keep to, at the 95th percentile."""

    ttft_ms: Annotated[float, Field(gt=0)] = float("inf")
    ms_per_token: Annotated[float, Field(gt=0)] = float("inf")


class Figures(Strict):
    """Everything a plan goes by. `drafters` are alternatives: the plan compares them, one pool at a time."""

    target: Target
    drafters: dict[str, Drafter] = Field(default_factory=dict)
    router: Router = Router()
    traffic: Traffic
    goals: Goals = Goals()
    autoscaling: AutoscalingConfig = AutoscalingConfig()


def parse(given: Mapping[str, Any]) -> Figures:
    """Raises ConfigError: a line for each bad key, with its bound and value."""
    try:
        return Figures.model_validate(given)
    except ValidationError as error:
        lines = (f"{'.'.join(map(str, e['loc'])) or 'figures'}: {e['msg']}; got {e['input']!r}" for e in error.errors())
        raise ConfigError("\n".join(lines)) from error


def load(path: Path, measured: Mapping[str, Any] | None = None) -> Figures:
    """Read a YAML file of figures.

    Args:
        measured: what a bench has shown (see `planning.measured`); the file's own figures win.
    Raises:
        ConfigError: the file cannot be read, lacks a figure, or breaks a bound.
    """
    try:
        given = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"figures {path}: {error}") from error
    if not isinstance(given, dict):
        raise ConfigError(f"figures {path}: must be a mapping; got {type(given).__name__}")
    try:
        return parse(_over(measured or {}, given))
    except ConfigError as error:
        raise ConfigError(f"figures {path}: {error}") from error


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        low = merged.get(key)
        merged[key] = _over(low, value) if isinstance(low, Mapping) and isinstance(value, Mapping) else value
    return merged
