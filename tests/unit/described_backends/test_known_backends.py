"""Plugins and rows together: how a model is run with a backend."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from gpustack.kit.errors import InvalidInput
from gpustack.schemas import BackendVersionConfig, InferenceBackendCreate, InferenceBackendRow
from gpustack.server.known_backends import KnownBackends, breaks, for_worker, uses_row
from support.reconcile import a_model

VERSIONS = {"llama-cpp": "1.0", "custom": "default"}
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def a_row(name: str = "mine", **fields: Any) -> InferenceBackendRow:
    described = InferenceBackendCreate.model_validate({"backend_name": name, **fields})
    return InferenceBackendRow(id=1, created_at=NOW, updated_at=NOW, **described.model_dump())


def known(*rows: InferenceBackendRow) -> KnownBackends:
    return KnownBackends(VERSIONS, rows)


TWO = a_row(
    version_configs={
        "v9": {"run_command": "nine {{port}}", "env": {"A": "9"}, "memory_limit": 1 << 30},
        "v10": {"packages": []},
        "boxed": {"image_name": "engine:1", "entrypoint": "/bin/x"},
    },
    default_run_command="any {{port}}",
    default_env={"A": "0", "B": "1"},
    default_backend_param=["--first 1"],
    health_check_path="/ok",
    parameter_format="equal",
)


def test_a_row_says_how_its_versions_run() -> None:
    nine = known(TWO).engine(
        a_model(backend="mine", backend_version="v9", backend_parameters=["--x", "2"]), "mine"
    )

    assert (nine.backend, nine.served_by, nine.version) == ("mine", "custom", "v9")
    assert nine.config == BackendVersionConfig(
        run_command="nine {{port}}", env={"A": "9", "B": "1"}, memory_limit=1 << 30
    )
    assert (nine.parameters, nine.health_check_path) == (("--first=1", "--x=2"), "/ok")
    assert not nine.installs


@pytest.mark.parametrize(("default", "chosen"), [("", "v10"), ("v9", "v9")])
def test_without_a_version_it_is_the_default_or_the_latest(default: str, chosen: str) -> None:
    row = TWO.model_copy(update={"default_version": default})

    assert known(row).engine(a_model(backend="mine"), "mine").version == chosen


def test_a_model_has_the_last_word() -> None:
    model = a_model(
        backend="mine", backend_version="v9", image_name="reg/mine:2", run_command="x {{model_path}}"
    )

    config = known(TWO).engine(model, "mine").config

    assert (config.runner, config.image_name, config.run_command) == (
        "container",
        "reg/mine:2",
        "x {{model_path}}",
    )


def test_a_row_adds_versions_to_a_plugin_and_leaves_the_others() -> None:
    row = a_row(
        "llama-cpp", version_configs={"next": {"image_name": "l:next"}}, default_run_command="x {{port}}"
    )

    plain = known(row).engine(a_model(backend="llama-cpp"), "llama-cpp")
    added = known(row).engine(a_model(backend="llama-cpp", backend_version="next"), "llama-cpp")

    assert (plain.served_by, plain.version, plain.config) == ("llama-cpp", "1.0", BackendVersionConfig())
    assert plain.installs
    assert (added.served_by, added.config.image_name, added.config.run_command) == (
        "llama-cpp",
        "l:next",
        "x {{port}}",
    )
    assert not added.installs


def test_the_plugins_engine_is_installed_for_a_command_that_uses_it() -> None:
    row = a_row(
        "llama-cpp", version_configs={"1.0": {"run_command": "nice {{command}}", "packages": ["x==1"]}}
    )

    engine = known(row).engine(a_model(backend="llama-cpp"), "llama-cpp")

    assert engine.installs
    assert engine.config.packages == ["x==1"]


def test_custom_is_never_chosen_for_a_model_that_names_no_backend() -> None:
    assert [each.backend for each in known(TWO).engines(a_model())] == ["llama-cpp"]


@pytest.mark.parametrize(
    ("row", "model", "says"),
    [
        (TWO, {"backend": "other"}, "backend 'other' is not installed; there are: llama-cpp, custom, mine"),
        (TWO, {"backend": "mine", "backend_version": "v1"}, "backend mine has no version 'v1'; it has boxed, v9, v10"),
        (TWO, {"backend": "custom"}, "backend custom needs a run_command or an image_name"),
        (
            a_row(default_run_command="{{command}}"),
            {"backend": "mine"},
            "backend mine: {{command}} is the engine that a plugin installs, and here none does",
        ),
        (
            a_row(version_configs={"1": {"run_command": "x", "packages": ["y"]}}),
            {"backend": "mine"},
            "backend mine: packages go into the environment",
        ),
    ],
)  # fmt: skip
def test_what_cannot_run_is_told_in_one_line(
    row: InferenceBackendRow, model: dict[str, Any], says: str
) -> None:
    wanted = a_model(**model)

    with pytest.raises(InvalidInput) as caught:
        known(row).engine(wanted, wanted.backend)

    assert str(caught.value).startswith(says)
    assert known(row).trouble(wanted) == str(caught.value)
    assert known(row).engines(wanted) == []
    told = for_worker(wanted, known(row), backend=wanted.backend, version=wanted.backend_version)
    assert told.trouble == str(caught.value)


def test_a_name_may_be_written_in_any_case() -> None:
    assert known(TWO).named("Custom") == "custom"
    with pytest.raises(InvalidInput, match="there is no 'vllm'; installed are custom, llama-cpp, mine"):
        known(TWO).named("vllm")


def test_who_needs_a_row() -> None:
    added = a_row("llama-cpp", version_configs={"next": {"image_name": "l:next"}})

    assert uses_row(VERSIONS, a_model(backend="mine", backend_version="gone"), (), TWO)
    assert not uses_row(VERSIONS, a_model(backend="llama-cpp"), (), added)
    assert uses_row(VERSIONS, a_model(backend="llama-cpp", backend_version="next"), (), added)
    assert uses_row(VERSIONS, a_model(backend="llama-cpp"), ("1.0", "next"), added)
    assert uses_row(VERSIONS, a_model(), ("next",), added)
    assert not uses_row(VERSIONS, a_model(), ("1.0",), added)
    for described in ({"default_version": "1.0"}, {}):
        plain = a_row("llama-cpp", version_configs={"1.0": {"image_name": "l:1"}}, **described)
        assert uses_row(VERSIONS, a_model(backend="llama-cpp"), (), plain)


def test_what_a_change_breaks() -> None:
    less = TWO.model_copy(update={"version_configs": {"v9": TWO.version_configs["v9"]}})

    assert breaks(VERSIONS, a_model(backend="mine", backend_version="v10"), (), TWO, less)
    assert not breaks(VERSIONS, a_model(backend="mine", backend_version="v9"), (), TWO, less)
    assert not breaks(VERSIONS, a_model(backend="mine", backend_version="never"), (), TWO, less)
    # Without a version it is the latest that there is; its instances stay with what they were placed with.
    assert not breaks(VERSIONS, a_model(backend="mine"), ("v9",), TWO, less)
    assert breaks(VERSIONS, a_model(backend="mine"), ("v10",), TWO, less)


@pytest.mark.parametrize(
    ("model", "running", "broken"),
    [
        ({"backend": "llama-cpp"}, (), False),
        ({"backend": "llama-cpp"}, ("1.0",), False),
        ({"backend": "llama-cpp"}, ("2.0",), True),
        ({"backend": "llama-cpp", "backend_version": "2.0"}, (), True),
        ({}, ("2.0",), True),
        ({}, ("3.0",), False),
    ],
)
def test_what_a_change_of_a_plugins_versions_breaks(
    model: dict[str, Any], running: tuple[str, ...], broken: bool
) -> None:
    boxed = {"2.0": {"image_name": "l:2"}, "3.0": {"image_name": "l:3"}}
    old = a_row("llama-cpp", default_version="2.0", version_configs=boxed)
    new = a_row("llama-cpp", default_version="3.0", version_configs={"3.0": boxed["3.0"]})

    assert breaks(VERSIONS, a_model(**model), running, old, new) is broken
    assert not breaks(VERSIONS, a_model(**model), running, new, old)


@pytest.mark.parametrize("default", ["", "2.0"])
def test_an_image_is_not_taken_from_the_version_that_a_model_means(default: str) -> None:
    old = a_row("llama-cpp", default_version=default, version_configs={default or "1.0": {"image_name": "l"}})
    new = a_row("llama-cpp", default_version=default, version_configs={"9.0": {"image_name": "l:9"}})

    assert breaks(VERSIONS, a_model(backend="llama-cpp"), (), old, new)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"backend_name": "a/b"}, "should match pattern"),
        ({"version_configs": {"a b": {}}}, "should match pattern"),
        ({"version_configs": {"1": {"run_command": "x {{y}}"}}}, "there is no placeholder {{y}}"),
        (
            {"version_configs": {"1": {"image_name": "x", "runner": "process"}}},
            "image_name goes with runner container",
        ),
        (
            {"version_configs": {"1": {"image_name": "x", "packages": ["y"]}}},
            "packages go with runner process",
        ),
        ({"version_configs": {"1": {"env": {"a-b": "1"}}}}, "'a-b' is not an environment variable"),
        ({"version_configs": {"1": {"packages": ["--index-url=x"]}}}, "is no package"),
        ({"health_check_path": "health"}, "should match pattern"),
        ({"enabled": False}, "Extra inputs are not permitted"),
    ],
)
def test_a_description_that_makes_no_sense_is_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says.replace("{", r"\{")):
        InferenceBackendCreate.model_validate({"backend_name": "mine", **fields})


def test_what_another_system_exports_is_read() -> None:
    exported = {
        "id": 7,
        "backend_name": "mine-custom",
        "is_built_in": False,
        "default_version": None,
        "enabled": True,
        "version_configs": {
            "v1-custom": {
                "image_name": "e:1",
                "run_command": None,
                "built_in_frameworks": None,
                "custom_framework": "cuda",
            }
        },
    }

    read = InferenceBackendCreate.model_validate(exported)

    assert read.version_configs["v1-custom"].runner == "container"
    assert read.default_version == ""
