"""What people and the API see of the settings: no secret, and where each value comes from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gpustack.settings.declared import Options
from gpustack.settings.load import Loaded, holds_secret, read, without_password
from gpustack.settings.option import GROUPS
from gpustack.settings.shown import HIDDEN, as_text, shown


def rows(loaded: Loaded) -> dict[str, dict[str, Any]]:
    found = shown(loaded)
    json.dumps(found)
    return {row["name"]: row for row in found}


def test_every_option_is_there_with_its_facts(options: Options) -> None:
    found = rows(read({}, options))
    assert list(found) == list(options)
    assert found["port"] == {
        "name": "port",
        "value": 80,
        "default": 80,
        "origin": "",
        "group": "Common",
        "plugin": "",
        "secret": False,
        "reload": False,
    }
    assert found["debug"]["reload"]
    assert found["oidc_issuer"]["plugin"]
    assert {row["group"] for row in found.values()} == set(GROUPS)
    assert all(row["value"] == row["default"] for row in found.values() if not row["name"].endswith("_dir"))


def test_the_origin_is_the_flag_the_variable_or_the_line(
    options: Options, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text("debug: true\n\nworker_port: 1002\nsystem_reserved:\n  ram: 3\noidc_client_id: me\n")
    monkeypatch.setenv("GPUSTACK_TLS_PORT", "1003")
    monkeypatch.setenv("HF_TOKEN", "very-secret")
    loaded = read({"config_file": str(file), "port": "1001"}, options)
    origins = {name: row["origin"] for name, row in rows(loaded).items() if row["origin"]}
    assert origins == {
        "config_file": "--config-file",
        "port": "--port",
        "tls_port": "GPUSTACK_TLS_PORT",
        "huggingface_token": "HF_TOKEN",
        "debug": f"debug in {file}, line 1",
        "worker_port": f"worker_port in {file}, line 3",
        "system_reserved": f"system_reserved in {file}, line 4",
        "oidc_client_id": f"oidc_client_id in {file}, line 6",
    }


def test_the_token_of_a_file_comes_from_there(options: Options, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("very-secret\n")
    found = rows(read({"token_file": str(tmp_path / "token")}, options))
    assert (found["token"]["value"], found["token"]["origin"]) == (HIDDEN, "--token-file")


def test_an_old_name_shows_under_the_new_one(options: Options) -> None:
    found = rows(read({"worker_ip": "10.0.0.7"}, options))
    assert (found["worker_ip"]["value"], found["worker_ip"]["origin"]) == ("", "")
    assert (found["advertise_address"]["value"], found["advertise_address"]["origin"]) == (
        "10.0.0.7",
        "--worker-ip",
    )


# Secrets ------------------------------------------------------------------------------------------------


def test_secrets_are_hidden(options: Options) -> None:
    secret = [each.name for each in options.values() if each.secret and each.name != "database_url"]
    loaded = read(dict.fromkeys(secret, "very-secret"), options)
    assert not loaded.problems
    found = rows(loaded)
    assert {found[name]["value"] for name in secret} == {HIDDEN}
    assert "very-secret" not in json.dumps(found)


def test_a_secret_that_is_not_set_is_not_hidden(options: Options) -> None:
    found = rows(read({}, options))
    assert {row["value"] for row in found.values() if row["secret"]} == {"", None}


URLS = {
    "postgresql://user:very-secret@host:5432/name": "postgresql://user:***@host:5432/name",
    "postgresql://user:very:secret@host/name": "postgresql://user:***@host/name",
    "postgresql://user:very@secret@host/name": "postgresql://user:***@host/name",
    "postgresql://user:very/secret@host/name": "postgresql://user:***@host/name",
    "postgresql://:very-secret@host/name": "postgresql://:***@host/name",
    "postgresql://u:very-secret@[::1]:5432/n": "postgresql://u:***@[::1]:5432/n",
    "postgresql://u:very-secret@[::1/n": "postgresql://u:***@[::1/n",
    "postgresql://u@host/n?sslmode=require&sslpassword=very-secret": (
        "postgresql://u@host/n?sslmode=require&sslpassword=***"
    ),
    "postgresql://host/n?PASSWORD=very-secret&x=1": "postgresql://host/n?PASSWORD=***&x=1",
    "see http://a:very-secret@b and http://c:very-secret@d.": "see http://a:***@b and http://c:***@d.",
    "http://me@corp.example:very-secret@host": "http://me@corp.example:***@host",
    "http://user:very secret@host": "http://user:***@host",
    "http://us er:very\nsecret@host": "http://us er:***@host",
    "http://host:8080/a@b": "http://host:8080/a@b",
    "http://user@host:8080/a@b": "http://user@host:8080/a@b",
    "http://[::1]:8080/a@b": "http://[::1]:8080/a@b",
    "http://host:8080/a?b=c@d": "http://host:8080/a?b=c@d",
    "http://host/a:b@c": "http://host/a:b@c",
    "http://user@host/": "http://user@host/",
    "user:word@host": "user:word@host",
    "": "",
}


@pytest.mark.parametrize("text", URLS)
def test_passwords_in_urls_are_hidden_and_nothing_else(text: str) -> None:
    assert without_password(text) == URLS[text]


def test_a_password_deep_in_an_option_is_hidden(options: Options) -> None:
    loaded = read(
        {"saml_security": '{"wantNameId": ["http://user:very-secret@host", {"x": "a:b@c"}]}'}, options
    )
    assert rows(loaded)["saml_security"]["value"] == {"wantNameId": ["http://user:***@host", {"x": "a:b@c"}]}


@pytest.mark.parametrize("name", ["database_url", "server_url", "server_external_url", "model_catalog_file"])
def test_an_option_with_a_url_shows_it_without_the_password(name: str, options: Options) -> None:
    scheme = "postgresql" if name == "database_url" else "https"
    loaded = read({name: f"{scheme}://user:very-secret@host/path"}, options)
    assert not loaded.problems
    assert rows(loaded)[name]["value"] == f"{scheme}://user:***@host/path"


def test_what_holds_a_secret(options: Options) -> None:
    assert holds_secret(options["token"], "x")
    assert not holds_secret(options["token"], "")
    assert not holds_secret(options["port"], 80)
    assert holds_secret(options["database_url"], "postgresql://u:p@h/d")
    assert not holds_secret(options["database_url"], "postgresql://u@h/d")


# As text ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        ("", ""),
        (True, "true"),
        (False, "false"),
        (80, "80"),
        (["GET", "POST"], '["GET", "POST"]'),
        ({"ram": 2}, '{"ram": 2}'),
        ("one\ntwo\tthree", "one two three"),
    ],
)
def test_a_value_is_one_line(value: Any, text: str) -> None:
    assert as_text(value) == text
