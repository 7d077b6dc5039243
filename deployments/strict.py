"""A whole Serve config, checked before anything starts. Serve itself lets unknown keys pass and some values unread."""

import difflib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from ray._common.utils import import_attr
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy
from ray.serve.schema import ServeDeploySchema

from specserve.config import AppConfig, parse
from specserve.errors import ConfigError

# What Serve's schema declares as a plain dict.
_SHAPES = {"autoscaling_policy": AutoscalingPolicy}


def check(config: Any) -> AppConfig:
    """Check every key and value of a Serve config with one specserve application.

    Raises:
        ConfigError: what is wrong, where, and for an unknown key the nearest known one.
    """
    if not isinstance(config, dict) or len(config.get("applications") or ()) != 1:
        raise ConfigError("must hold exactly one entry in applications")
    _keys(config, ServeDeploySchema, "")
    application = config["applications"][0]
    args = parse(application.get("args") or {})
    _valid(ServeDeploySchema, config, "")
    _importable(application["import_path"], "applications[0].import_path")
    for path in (config.get("grpc_options") or {}).get("grpc_servicer_functions") or ():
        _importable(path, "grpc_options.grpc_servicer_functions")
    if policy := application.get("autoscaling_policy"):
        _importable(policy.get("policy_function"), "applications[0].autoscaling_policy.policy_function")
        _valid(AutoscalingPolicy, policy, "applications[0].autoscaling_policy.")
    _overrides(application.get("deployments") or (), args)
    return args


def _overrides(deployments: Any, args: AppConfig) -> None:
    names = ["Router", "Verifier", *(f"Drafter-{name}" for name in args.pools)]
    names += ["Infill"] if args.infill is not None else []
    for i, override in enumerate(deployments):
        where = f"applications[0].deployments[{i}]."
        if override["name"] not in names:
            raise ConfigError(f"{where}name must be one of {', '.join(names)}; got {override['name']!r}")
        if isinstance(scaling := override.get("autoscaling_config"), Mapping):
            _valid(AutoscalingConfig, scaling, f"{where}autoscaling_config.")


def _keys(given: Mapping[str, Any], model: type[BaseModel], where: str) -> None:
    for key, value in given.items():
        if key not in model.model_fields:
            near = difflib.get_close_matches(str(key), model.model_fields, n=1, cutoff=0)
            raise ConfigError(f"{where}{key} is no known key; did you mean {near[0]!r}?")
        shape = _SHAPES.get(key, model.model_fields[key].annotation)
        for inner in _models(shape):
            if isinstance(value, Mapping):
                _keys(value, inner, f"{where}{key}.")
            elif isinstance(value, list):
                for i, item in enumerate(value):
                    if isinstance(item, Mapping):
                        _keys(item, inner, f"{where}{key}[{i}].")


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def _valid(model: Any, given: Any, where: str) -> None:
    try:
        model.model_validate(given)
    except ValidationError as error:
        lines = (f"{where}{'.'.join(map(str, e['loc']))}: {e['msg']}; got {e['input']!r}" for e in error.errors())
        raise ConfigError("\n".join(lines)) from error
    except (ImportError, AttributeError, TypeError) as error:  # Serve imports a policy when it is named
        raise ConfigError(f"{where.rstrip('.')}: {error}") from error


def _importable(path: Any, where: str) -> None:
    try:
        import_attr(path)
    except Exception as error:  # whatever the module itself raises
        raise ConfigError(f"{where} must name something to import; got {path!r}: {error}") from error
