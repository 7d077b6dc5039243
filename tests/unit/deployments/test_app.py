"""What the configuration says reaches Ray Serve."""

import copy
import json

import pytest

from deployments import launch
from deployments.app import build_app
from deployments.router import settings
from specserve.config import parse
from specserve.errors import ConfigError

ARGS = {
    "target": {
        "model": "zoo:target",
        "device": "cuda",
        "replicas": {"min": 1, "max": 4, "target_sessions": 16, "upscale_delay_s": 2, "downscale_delay_s": 30},
        "placement": {"num_cpus": 4, "num_gpus": 0.5, "accelerator_type": "H100", "labels": {"role": "verifier"}},
        "max_sessions": 48,
        "graceful_shutdown_s": 120,
    },
    "drafters": {
        "ngram": {"kind": "ngram", "replicas": {"min": 0, "max": 2}},
        "small": {"kind": "ar", "model": "zoo:ar", "placement": {"num_gpus": 0.25, "resources": {"drafter": 1}}},
    },
    "router": {"replicas": {"min": 2, "max": 2}},
    "data_plane": {"secret": "s"},
}


def _deployments(args: dict) -> dict:
    seen: dict = {}

    def walk(app) -> None:
        deployment = app._bound_deployment
        seen[deployment.name] = deployment
        for value in [*deployment.init_args, *deployment.init_kwargs.values()]:
            for item in value.values() if isinstance(value, dict) else [value]:
                if hasattr(item, "_bound_deployment"):
                    walk(item)

    walk(build_app(parse(args)))
    return seen


def test_every_part_is_a_deployment_of_its_own() -> None:
    assert set(_deployments(ARGS)) == {"Router", "Verifier", "Drafter-ngram", "Drafter-small"}


def test_a_pool_that_fills_gaps_is_one_more_deployment_that_scales_by_itself() -> None:
    infill = {"replicas": {"min": 1, "max": 3, "target_sessions": 4}, "max_sessions": 12}
    made = _deployments({**ARGS, "infill": infill})["Infill"]
    assert made.max_ongoing_requests == 12
    scaling = made._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (1, 3, 4)


@pytest.mark.parametrize("name", ["target", "infill"])
def test_a_drafter_may_not_take_the_name_of_another_pool(name: str) -> None:
    with pytest.raises(ConfigError, match=f"name of another pool, target or infill; got '{name}'"):
        parse({**ARGS, "drafters": {name: {"kind": "ngram"}}, "infill": {}})


HEADS = {"kind": "heads", "model": "zoo:heads-r4"}


def test_heads_in_the_verifier_are_no_deployment_and_those_in_a_pool_are() -> None:
    args = {**ARGS, "drafters": {"own": HEADS, "far": {**HEADS, "where": "remote"}}}
    assert set(_deployments(args)) == {"Router", "Verifier", "Drafter-far"}
    own, far = settings(parse(args)).drafters
    assert (own.inside, own.features, own.laws) == (True, (), True)
    assert (far.inside, far.features, far.laws) == (False, (-1,), True)


def test_one_drafter_at_most_runs_in_the_verifier() -> None:
    with pytest.raises(ConfigError, match="at most one with where: verifier; got a, b"):
        parse({**ARGS, "drafters": {"a": HEADS, "b": HEADS}})


def test_resources_labels_and_scaling_are_as_configured() -> None:
    made = _deployments(ARGS)
    verifier = made["Verifier"]
    assert verifier.ray_actor_options["num_gpus"] == 0.5
    assert verifier.ray_actor_options["accelerator_type"] == "H100"
    assert verifier.ray_actor_options["label_selector"] == {"role": "verifier"}
    assert verifier.max_ongoing_requests == 48
    scaling = verifier._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (1, 4, 16)
    assert (scaling.upscale_delay_s, scaling.downscale_delay_s) == (2, 30)
    assert verifier._deployment_config.graceful_shutdown_timeout_s == 120
    assert made["Drafter-small"].ray_actor_options["resources"] == {"drafter": 1}
    assert made["Drafter-ngram"]._deployment_config.autoscaling_config.min_replicas == 0
    scaling = made["Router"]._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (2, 2)


def test_what_the_policy_goes_by_travels_with_each_deployment() -> None:
    made = _deployments(ARGS)

    def kwargs(name: str) -> dict:
        return made[name]._deployment_config.autoscaling_config.policy.policy_kwargs

    assert {name: kwargs(name)["role"] for name in made} == {
        "Router": "router",
        "Verifier": "verifier",
        "Drafter-ngram": "drafter",
        "Drafter-small": "drafter",
    }
    aims = kwargs("Verifier")["aims"]
    assert (aims["least"], aims["most"], aims["sessions"], aims["queue_s"]) == (1, 4, 16, 0.2)
    assert kwargs("Drafter-ngram")["aims"]["late"] == 0.1


def test_where_nothing_scales_every_number_is_fixed() -> None:
    args = copy.deepcopy(ARGS)
    args["target"]["replicas"] = {"min": 3, "max": 3}
    del args["drafters"]["ngram"]["replicas"]
    made = _deployments(args)
    assert {name: d.num_replicas for name, d in made.items()} == {
        "Router": 2,
        "Verifier": 3,
        "Drafter-ngram": 1,
        "Drafter-small": 1,
    }


BAD = [
    (("target", "slotz"), 1, r"target: 'slotz' is no known key; did you mean 'slots'\?"),
    (("target", "slots"), 0, "target.slots: .*greater than or equal to 1; got 0"),
    (("target", "replicas"), {"min": 3, "max": 2}, "replicas.min must be at most replicas.max; got 3 > 2"),
    (("target", "replicas"), {"target_late": 0.1}, r"target.replicas: 'target_late' is no known key; did you mean"),
    (("target", "replicas"), {"target_occupancy": 1.5}, "target_occupancy: .*less than or equal to 1; got 1.5"),
    (("drafters", "ngram", "replicas"), {"target_busy": 0}, "target_busy: .*greater than 0; got 0"),
    (("target", "replicas"), {"hysteresis": -1}, "hysteresis: .*greater than or equal to 0; got -1"),
    (("autoscaling",), {"window_s": 1.0}, "window_s must be longer than report_interval_s 1; got 1"),
    (("target", "dtype"), "int8", "target.dtype: .*'float32', 'bfloat16' or 'float16'; got 'int8'"),
    (("drafters", "small", "kind"), "magic", "drafters.small: .*'ngram', 'ar'"),
    (("drafters", "small", "modle"), "x", r"'modle' is no known key; did you mean 'model'\?"),
    (("router", "max_waitign"), 5, r"router: 'max_waitign' is no known key; did you mean 'max_waiting'\?"),
    (("target", "max_draft_nodes"), 8, "drafters.ngram must draft at most target.max_draft_nodes 8; got 12"),
    (("rule",), "luck", "rule: .*'coupled'.*got 'luck'"),
]


@pytest.mark.parametrize(("path", "value", "message"), BAD, ids=[".".join(p) for p, _, _ in BAD])
def test_a_bad_configuration_names_the_key_the_bound_and_the_value(path: tuple, value: object, message: str) -> None:
    args = copy.deepcopy(ARGS)
    at: dict = args
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    with pytest.raises(ConfigError, match=message):
        parse(args)


@pytest.mark.parametrize("path", sorted(launch.CONFIGS.glob("*.yaml")), ids=lambda p: p.name)
def test_every_shipped_config_is_good(path) -> None:
    launch.load(path)


def test_a_typo_in_serves_own_part_is_refused_too(tmp_path) -> None:
    text = (launch.CONFIGS / "demo.yaml").read_text()
    for good, bad in (("grpc_options:", "grpc_optons:"), ("import_path:", "import_pth:"), ("port: 9000", "prt: 9000")):
        path = tmp_path / "typo.yaml"
        path.write_text(text.replace(good, bad))
        with pytest.raises(ConfigError, match="is no known key; did you mean"):
            launch.load(path)


def test_a_drafter_with_another_tokenizer_is_refused(tmp_path) -> None:
    from deployments.drafter import check_vocabulary

    for name, vocab in (("target", {"a": 0, "b": 1}), ("same", {"a": 0, "b": 1}), ("other", {"a": 1, "b": 0})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}}))
    check_vocabulary("x", tmp_path / "same", tmp_path / "target")
    with pytest.raises(ConfigError, match=r"drafters\.x\.model must have the target's tokenizer.*not the same ones"):
        check_vocabulary("x", tmp_path / "other", tmp_path / "target")


def test_the_secret_of_the_data_plane_may_stand_in_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    config = parse({**ARGS, "data_plane": {"secret_env": "OF_THE_TESTS"}})
    monkeypatch.setenv("OF_THE_TESTS", "hidden")
    assert config.data_plane.shared_secret() == "hidden"
    monkeypatch.delenv("OF_THE_TESTS")
    with pytest.raises(ConfigError, match=r"data_plane\.secret_env must name a variable set on every node; got 'OF_"):
        config.data_plane.shared_secret()
    with pytest.raises(ConfigError, match="only one of secret and secret_env may be given; got both"):
        parse({**ARGS, "data_plane": {"secret": "s", "secret_env": "OF_THE_TESTS"}})
