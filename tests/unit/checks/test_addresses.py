"""The network interface, the database's URL, and all that is wrong at once."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from gpustack.app.checks import Examined, addresses
from gpustack.kit.errors import SettingsError
from support.running import free_ports

Look = Callable[..., Examined]
HINT = "it looks like postgresql://user:password@host:5432/name"


# The interface ------------------------------------------------------------------------------------------


@pytest.fixture
def interfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"lo": ["127.0.0.1"], "eth0": ["10.0.0.7"], "eth1": []}
    monkeypatch.setattr(addresses, "interface_addresses", lambda: found)


@pytest.mark.usefixtures("interfaces")
def test_an_interface_with_an_address_is_right(look: Look) -> None:
    assert not look(worker_ifname="eth0").problems
    assert not look().problems


@pytest.mark.usefixtures("interfaces")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("eth1", "has no address"),
        ("eth9", "is no network interface of this machine"),
        ("ETH0", "is no network"),
    ],
)
def test_one_without_or_none_is_named_with_those_there_are(name: str, words: str, look: Look) -> None:
    (line,) = look(worker_ifname=name).problems
    assert line.startswith(f"--worker-ifname {name!r} {words}")
    assert line.endswith("; give one of eth0, lo")


def test_the_interfaces_of_this_machine_are_known(look: Look) -> None:
    names = [name for _, name in socket.if_nameindex()]
    (line,) = look(worker_ifname="nowhere0").problems
    assert "lo" in line.partition("give one of ")[2].split(", ") or "lo" not in names


# The database -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://host/name",
        "postgres://user:very-secret@host:5432/name?sslmode=require",
        "postgresql://user:very%20secret@[::1]/name",
        "postgresql://user@/name?host=/var/run/postgresql",
    ],
)
def test_a_url_of_a_database_is_right(url: str, look: Look) -> None:
    assert not look(database_url=url).problems


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://user:very-secret@host:port/name", f"is not a URL; {HINT}"),
        ("postgresql://user:very-secret@[::1/name", f"is not a URL; {HINT}"),
        ("postgresql://user:very-secret@host:99999/name", f"is not a URL; {HINT}"),
        (
            "postgresql://user:very-secret@host/name?sslmode=maybe",
            "has sslmode='maybe'; it is one of disable",
        ),
        ("postgresql://user:very-secret@host/name?ssl=on", "has the option 'ssl', which is not known"),
        ("postgresql://user:very-secret@host/name?connect_timeout=x", "has connect_timeout='x'"),
    ],
)
def test_a_url_that_is_none_is_named_without_its_password(
    url: str, words: str, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    (line,) = look(database_url=url).problems
    assert line.startswith(f"--database-url {words}")
    monkeypatch.setenv("GPUSTACK_DATABASE_URL", url)
    (again,) = look().problems
    assert again.startswith(f"GPUSTACK_DATABASE_URL {words}")
    assert "very-secret" not in line + again


def test_a_scheme_that_no_plugin_brings_is_named_with_those_there_are(look: Look) -> None:
    (line,) = look(database_url="mysql://user:very-secret@host/name").problems
    assert line.startswith(
        "--database-url starts with mysql://, for which no plugin is installed; there are postgres://, postgresql://"
    )
    assert "very-secret" not in line


# All together -------------------------------------------------------------------------------------------


def test_all_that_is_wrong_is_said_at_once(look: Look, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    config = tmp_path / "config.yaml"
    config.write_text("prot: 1\nservice_port_range: x\n")
    (port,) = free_ports(1)
    with socket.create_server(("127.0.0.1", port)):
        found = look(
            config_file=str(config),
            data_dir=str(tmp_path / "file"),
            debug="maybe",
            api_port=str(port),
            worker_ifname="nowhere0",
            database_url="postgresql://user:very-secret@host:port/name",
            ssl_certfile="/nowhere/certificate",
            ssl_keyfile="/nowhere/key",
            token_file="/nowhere/token",
        )
    begins = {
        "'prot' in ",
        "service_port_range in ",
        "--debug 'maybe'",
        "--token-file /nowhere/token",
        "--data-dir ",
        f"port {port} on 127.0.0.1 is taken",
        "--worker-ifname 'nowhere0'",
        "--database-url ",
        "--ssl-certfile ",
        "--ssl-keyfile ",
    }
    assert len(found.problems) == len(begins)
    for begin in begins:
        assert any(line.startswith(begin) for line in found.problems), begin
    with pytest.raises(SettingsError) as caught:
        found.settings()
    assert caught.value.message.splitlines() == list(found.problems)


def test_a_default_in_the_place_of_a_wrong_port_clashes_with_none(look: Look) -> None:
    problems = [line for line in look(port="http", api_port="80").problems if not line.startswith("port 80 ")]
    assert problems == ["--port 'http': give a port from 0 to 65535"]


def test_a_default_in_the_place_of_a_wrong_directory_is_not_looked_at(
    look: Look, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("gpustack.settings.model.default_data_dir", lambda: tmp_path / "file")
    assert look(data_dir=" ").problems == ("--data-dir ' ': give a path",)
    (line,) = look(data_dir="").problems
    assert line.startswith("--log-dir ")
