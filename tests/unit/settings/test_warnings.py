"""What works and should be known: old names, secrets that show, variables that are nobody's wish, idle options."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpustack.app import start
from gpustack.extensions import Catalogue
from gpustack.extensions.catalogue import Plugin
from gpustack.settings import deprecated
from gpustack.settings.declared import Options
from gpustack.settings.load import Loaded, read
from gpustack.settings.sources import blocked_plugins

URL = "postgresql://user:very-secret@host/name"


def warned(options: Options, flags: dict[str, str] | None = None) -> list[str]:
    loaded = read(flags or {}, options)
    assert not loaded.problems
    return list(loaded.warnings)


# Old names ----------------------------------------------------------------------------------------------


def given_as(kind: str, file: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> dict[str, str]:
    """Give an option in one of the three ways; return the flags."""
    if kind == "flag":
        return {name: text}
    if kind == "variable":
        monkeypatch.setenv("GPUSTACK_" + name.upper(), text)
        return {}
    file.write_text(f"{name}: {text}\n")
    return {"config_file": str(file)}


@pytest.mark.parametrize("kind", ["flag", "variable", "file"])
def test_the_workers_ip_is_the_advertised_address(
    kind: str, options: Options, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = read(given_as(kind, file, monkeypatch, "worker_ip", "10.0.0.7"), options)
    assert (loaded.settings.advertise_address, loaded.settings.worker_ip) == ("10.0.0.7", "")
    origin = {"flag": "--worker-ip", "variable": "GPUSTACK_WORKER_IP", "file": f"worker_ip in {file}, line 1"}
    assert loaded.warnings == (f"{origin[kind]} is deprecated; use --advertise-address (advertise_address)",)


def test_the_workers_ip_means_nothing_beside_the_address(
    options: Options, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPUSTACK_ADVERTISE_ADDRESS", "10.0.0.1")
    loaded = read(given_as("file", file, monkeypatch, "worker_ip", "10.0.0.7"), options)
    assert loaded.settings.advertise_address == "10.0.0.1"
    (line,) = loaded.warnings
    assert line.endswith("is deprecated and not used, since GPUSTACK_ADVERTISE_ADDRESS is given")


def test_a_wrong_old_option_is_named_as_it_was_given(options: Options) -> None:
    (line,) = read({"worker_ip": "10.0.0.300"}, options).problems
    assert line.startswith("--worker-ip '10.0.0.300': ")


@pytest.mark.parametrize("kind", ["flag", "variable", "file"])
def test_the_old_keys_of_reserved_memory(
    kind: str, options: Options, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = '{"memory": 3, "gpu_memory": 4}'
    loaded = read(given_as(kind, file, monkeypatch, "system_reserved", text), options)
    assert not loaded.problems
    assert loaded.settings.system_reserved.model_dump() == {"ram": 3, "vram": 4}
    (line,) = loaded.warnings
    assert line == (
        f"{loaded.origin('system_reserved')}: memory and gpu_memory are deprecated; use ram and vram"
    )


def test_one_old_key_among_new_ones(options: Options, file: Path) -> None:
    file.write_text("system_reserved:\n  memory: 3\n  vram: 4\n")
    loaded = read({"config_file": str(file)}, options)
    assert loaded.settings.system_reserved.model_dump() == {"ram": 3, "vram": 4}
    (line,) = loaded.warnings
    assert line.endswith("line 1: memory is deprecated; use ram")


def test_a_wrong_amount_under_an_old_key_is_refused(options: Options) -> None:
    (line,) = read({"system_reserved": '{"memory": "much"}'}, options).problems
    assert line.startswith("--system-reserved ")
    assert line.endswith("ram: give a number")


@pytest.mark.parametrize(("version", "lines"), [("1.2.0", 1), ("0.36.0", 0), ("odd", 0)])
def test_a_hub_client_without_hf_transfer(
    version: str, lines: int, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deprecated, "version", lambda _: version)
    loaded = read({"enable_hf_transfer": "true"}, options)
    assert loaded.settings.enable_hf_transfer
    assert len(loaded.warnings) == lines
    assert all("--enable-hf-xet" in line for line in loaded.warnings)
    assert not warned(options, {"enable_hf_transfer": "false"})


# Secrets that show --------------------------------------------------------------------------------------

SECRETS = {
    "token": "very-secret",
    "bootstrap_password": "very-secret",
    "huggingface_token": "very-secret",
    "oidc_client_secret": "very-secret",
    "saml_sp_private_key": "very-secret",
    "database_url": URL,
}


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_that_is_typed_shows_in_ps(
    name: str, options: Options, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_ps(loaded: Loaded) -> list[str]:
        assert not loaded.problems
        assert "very-secret" not in " ".join(loaded.warnings)
        return [line for line in loaded.warnings if "list of processes" in line]

    flag, variable = options[name].flag, options[name].variable
    (line,) = of_ps(read({name: SECRETS[name]}, options))
    assert line.startswith(f"{flag} shows in the list of processes; give it by {variable}")
    assert ("--token-file" in line) == (name == "token")
    monkeypatch.setenv(variable, SECRETS[name])
    assert not of_ps(read({}, options))
    monkeypatch.delenv(variable)
    file.write_text(f"{name}: '{SECRETS[name]}'\n")
    assert not of_ps(read({"config_file": str(file)}, options))


def test_every_secret_is_among_these(options: Options) -> None:
    assert {option.name for option in options.values() if option.secret} == set(SECRETS)


def test_a_database_without_a_password_may_be_typed(options: Options) -> None:
    assert not warned(options, {"database_url": "postgresql://user@host/name?sslmode=require"})
    (line,) = warned(options, {"database_url": "postgresql://user@host/name?sslpassword=very-secret"})
    assert "list of processes" in line


# Variables ----------------------------------------------------------------------------------------------


def test_what_kubernetes_sets_for_a_service_is_no_port(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPUSTACK_PORT", "tcp://10.0.0.1:80")
    monkeypatch.setenv("GPUSTACK_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("GPUSTACK_SERVICE_PORT_HTTP", "80")
    monkeypatch.setenv("GPUSTACK_PORT_80_TCP", "tcp://10.0.0.1:80")
    monkeypatch.setenv("GPUSTACK_PORT_80_TCP_ADDR", "10.0.0.1")
    loaded = read({}, options)
    assert loaded.settings.port == 80
    assert not loaded.problems
    (line,) = loaded.warnings
    assert line.startswith("GPUSTACK_PORT=tcp://10.0.0.1:80 is not used: Kubernetes sets it")
    assert "enableServiceLinks: false" in line


def test_an_unknown_variable_gets_a_suggestion_and_keeps_its_value(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPUSTACK_TOKNE", "very-secret")
    monkeypatch.setenv("GPUSTACK_XYZ\nZ", "very-secret")
    assert warned(options) == [
        "GPUSTACK_TOKNE is no option and has no effect; did you mean 'GPUSTACK_TOKEN'?",
        "'GPUSTACK_XYZ\\nZ' is no option and has no effect",
    ]


def test_variables_of_the_command_line_are_known(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUSTACK_SERVER", "http://10.0.0.1")
    monkeypatch.setenv("GPUSTACK_API_KEY", "very-secret")
    assert not warned(options)


def test_an_empty_variable_is_none(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GPUSTACK_PORT", "GPUSTACK_TOKEN", "GPUSTACK_NONSENSE"):
        monkeypatch.setenv(name, "")
    assert not warned(options)


# Without effect -----------------------------------------------------------------------------------------


def test_options_without_effect_are_named_in_a_line_for_each_part(options: Options) -> None:
    flags = {"metrics_port": "3", "oidc_client_id": "me"}
    assert warned(options, flags) == [
        f"{names}: read and checked, but without effect: this version has no {what} yet"
        for names, what in (
            ("--metrics-port", "metrics"),
            ("--oidc-client-id", "sign-in with OpenID Connect"),
        )
    ]


def test_a_default_that_is_written_down_is_no_wish(options: Options, file: Path) -> None:
    idle = [each for each in options.values() if each.option.later and each.default_shown]
    assert len(idle) > 4
    assert not warned(options, {each.name: each.default_shown for each in idle})
    file.write_text("".join(f"{each.name}: {each.default_shown}\n" for each in idle))
    assert not warned(options, {"config_file": str(file)})


# Plugins that are not to be loaded ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", set()),
        (" , ", set()),
        ("acme, other ,", {"acme", "other"}),
        ('"a,b", acme', {"a,b", "acme"}),
        ('acme,"a,b"', {"a,b", "acme"}),
        ("acme\nother", {"acme", "other"}),
        # As before: quotes within a name are part of it.
        ('a"b', {'a"b'}),
    ],
)
def test_plugins_are_blocked_by_name(text: str, names: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUSTACK_PLUGINS_BLOCK", text)
    assert blocked_plugins() == names


def test_a_blocked_name_that_no_plugin_has_is_told_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPUSTACK_PLUGINS_BLOCK", "acme,system,sistem,of nobody")
    monkeypatch.setattr(start, "replace", lambda *_: None)
    monkeypatch.setattr(start, "spare_proxies", lambda *_: None)
    monkeypatch.setattr(start, "serve_as_init", lambda: None)
    plugins = {
        name: Plugin(name=name, distribution=name, version="1", state="blocked")
        for name in ("acme", "system")
    }
    warned: list[str] = []
    flags = {"data_dir": str(tmp_path), "port": "0", "server_url": "http://127.0.0.1:1", "token": "x"}
    start.start(flags, Catalogue(plugins=plugins), warned.append)
    assert [line for line in warned if "PLUGINS_BLOCK" in line] == [
        "GPUSTACK_PLUGINS_BLOCK names of nobody, and no plugin of that name is installed",
        "GPUSTACK_PLUGINS_BLOCK names sistem, and no plugin of that name is installed; did you mean system?",
    ]
