"""Two settings of which only one can be meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpustack.settings.declared import Options
from gpustack.settings.load import read

SERVER_ONLY = {
    "disable_worker": "true",
    "database_url": "postgresql://user:very-secret@host/name",
    "bootstrap_password": "very-secret",
}
WORKER = {"server_url": "http://10.0.0.1"}


def problems(options: Options, **flags: str) -> tuple[str, ...]:
    return read(flags, options).problems


# TLS ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("one", "other"), [("keyfile", "certfile"), ("certfile", "keyfile")])
def test_a_key_goes_with_a_certificate(one: str, other: str, options: Options) -> None:
    (line,) = problems(options, **{f"ssl_{one}": "/srv/file"})
    assert line == f"--ssl-{one} is given without --ssl-{other}; give both"
    assert not problems(options, ssl_keyfile="/srv/key", ssl_certfile="/srv/certificate")


def test_a_wrong_certificate_is_not_also_missing(options: Options, file: Path) -> None:
    file.write_text("ssl_certfile: [1]\n")
    (line,) = problems(options, ssl_keyfile="/srv/key", config_file=str(file))
    assert line.startswith("ssl_certfile in ")


# CORS ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("origins", "named"),
    [
        ("*", "--allow-origins *"),
        ("https://a.example,*", "--allow-origins *"),
        ("", "--allow-origins, which is *"),
    ],
)
def test_credentials_are_not_for_everybody(origins: str, named: str, options: Options) -> None:
    flags = {"allow_credentials": "true", **({"allow_origins": origins} if origins else {})}
    (line,) = problems(options, enable_cors="true", **flags)
    assert line.startswith(f"--allow-credentials and {named}: ")
    assert "--allow-origins https://example.com" in line
    assert not problems(options, **flags)
    assert not problems(options, enable_cors="false", **flags)
    assert not problems(options, enable_cors="true", **{**flags, "allow_credentials": "false"})


def test_credentials_are_for_origins_that_are_named(options: Options) -> None:
    assert not problems(
        options, enable_cors="true", allow_credentials="true", allow_origins="https://a.example"
    )


def test_origins_that_are_wrong_are_said_once(options: Options, file: Path) -> None:
    file.write_text("allow_origins: {a: 1}\n")
    (line,) = problems(options, enable_cors="true", allow_credentials="true", config_file=str(file))
    assert line.startswith("allow_origins in ")


# The token ----------------------------------------------------------------------------------------------


def test_the_token_and_its_file_are_not_both_given(
    options: Options, tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("very-secret")
    file.write_text(f"token_file: {tmp_path / 'token'}\n")
    monkeypatch.setenv("GPUSTACK_TOKEN", "very-secret")
    (line,) = problems(options, config_file=str(file))
    assert line == f"GPUSTACK_TOKEN and token_file in {file}, line 1 both give the token; leave one out"


# A server or a worker -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SERVER_ONLY)
def test_what_is_for_a_server_is_wrong_when_it_is_typed_on_a_worker(
    name: str, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    flag = "--" + name.replace("_", "-")
    end = "is for a server, and --server-url makes this machine a worker of another one; leave one out"
    assert problems(options, **WORKER, **{name: SERVER_ONLY[name]}) == (f"{flag} {end}",)
    monkeypatch.setenv("GPUSTACK_" + name.upper(), SERVER_ONLY[name])
    assert problems(options, **WORKER) == (f"GPUSTACK_{name.upper()} {end}",)
    assert not problems(options)


@pytest.mark.parametrize("name", SERVER_ONLY)
def test_what_is_for_a_server_is_passed_over_in_a_file_for_all_machines(
    name: str, options: Options, file: Path
) -> None:
    file.write_text(f"{name}: {SERVER_ONLY[name]}\n")
    loaded = read({**WORKER, "config_file": str(file)}, options)
    assert not loaded.problems
    (line,) = loaded.warnings
    assert line.startswith(f"{name} in {file}, line 1 is for a server, and --server-url makes")
    assert line.endswith("; it has no effect")
    assert getattr(loaded.settings, name) == options[name].default
    assert not read({"config_file": str(file)}, options).warnings


def test_a_worker_may_have_a_switch_of_the_server_that_is_off(options: Options) -> None:
    assert not problems(options, **WORKER, disable_worker="false")
