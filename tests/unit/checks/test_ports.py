"""Ports: each once in our own set, free, and not one that the system gives to others."""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from gpustack.app.checks import Examined, ports
from support.running import free_ports

Look = Callable[..., Examined]

IDLE = ("metrics_port", "ray_port")


# Used twice ---------------------------------------------------------------------------------------------


def test_free_ports_are_right(look: Look) -> None:
    found = look()
    assert (found.problems, found.warnings, found.hints) == ((), (), ())


def test_one_port_is_not_for_two(look: Look, tmp_path: Path, free: dict[str, str]) -> None:
    (line,) = look(worker_port=free["port"]).problems
    assert line == f"--port and --worker-port are both {free['port']}; give two ports"
    (tmp_path / "config.yaml").write_text(f"worker_port: {free['port']}\n")
    (line,) = look(worker_port="", config_file=str(tmp_path / "config.yaml")).problems
    assert line.startswith(f"--port and worker_port in {tmp_path / 'config.yaml'}, line 1 are both ")


def test_a_port_and_a_default_are_not_one(look: Look) -> None:
    assert (
        "--port and --worker-port are both 10150; give two ports"
        in look(port="10150", worker_port="").problems
    )


def test_the_port_for_tls_is_another_one_even_before_there_are_certificates(
    look: Look, free: dict[str, str]
) -> None:
    assert (
        f"--port and --tls-port are both {free['port']}; give two ports"
        in look(tls_port=free["port"]).problems
    )


def test_the_usual_port_for_tls_is_free_for_others_without_certificates(look: Look) -> None:
    assert not any("--tls-port" in line for line in look(port="443", tls_port="").problems)


def test_a_port_inside_the_range_of_the_engines(look: Look, free: dict[str, str]) -> None:
    port = int(free["worker_port"])
    around = f"{port - 1}-{port + 1}"
    lines = look(service_port_range=around).problems
    assert f"--worker-port {port} is inside --service-port-range {around}; give a port outside of it" in lines
    for outside in (f"{port + 1}-{port + 2}", f"{port - 2}-{port - 1}"):
        assert not any(line.startswith("--worker-port") for line in look(service_port_range=outside).problems)


def test_ranges_that_overlap(look: Look) -> None:
    found = look(
        service_port_range="40100-40200", ray_runtime_env_agent_port="1", ray_dashboard_agent_grpc_port="2"
    )
    assert found.problems == (
        (
            "--service-port-range 40100-40200 and --distributed-worker-port-range 40200-40999 overlap; give ranges "
            "without a port in common"
        ),
    )


def test_any_free_port_clashes_with_none(look: Look) -> None:
    assert not look(port="0", api_port="0", worker_port="0").problems


@pytest.mark.parametrize("name", IDLE)
def test_what_is_not_opened_yet_is_only_warned_about(name: str, look: Look, free: dict[str, str]) -> None:
    port = free["port"]
    found = look(**{name: f"{port}-{port}" if name.endswith("range") else port})
    assert not found.problems
    assert any(f"--{name.replace('_', '-')}" in line and f"{port}" in line for line in found.warnings)


@pytest.mark.parametrize(
    "flags",
    [
        {"disable_worker": "true", "worker_port": "PORT"},
        {"server_url": "http://10.0.0.1", "worker_port": "PORT"},
        {"disable_metrics": "true", "metrics_port": "PORT"},
    ],
)
def test_what_is_not_used_takes_no_port(flags: dict[str, str], look: Look, free: dict[str, str]) -> None:
    found = look(**{name: text.replace("PORT", free["port"]) for name, text in flags.items()})
    assert not found.problems
    assert not any("both" in line for line in found.warnings)


# Taken --------------------------------------------------------------------------------------------------


@pytest.fixture
def taken() -> Iterator[int]:
    # Not any: it may be one of the defaults.
    (port,) = free_ports(1)
    with socket.create_server(("127.0.0.1", port)):
        yield port


@pytest.mark.parametrize(
    ("name", "host"), [("port", "0.0.0.0"), ("api_port", "127.0.0.1"), ("worker_port", "127.0.0.1")]
)
def test_a_port_that_is_taken_is_named_with_who_has_it(name: str, host: str, look: Look, taken: int) -> None:
    (line,) = look(**{name: str(taken)}).problems
    flag, me = "--" + name.replace("_", "-"), psutil.Process().name()
    assert line == (
        f"port {taken} on {host} is taken by {me} (process {os.getpid()}); choose another with {flag}"
    )


def test_the_option_is_named_as_it_was_given(
    look: Look, taken: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPUSTACK_API_PORT", str(taken))
    (line,) = look(api_port="").problems
    assert line.endswith("choose another with GPUSTACK_API_PORT")
    monkeypatch.delenv("GPUSTACK_API_PORT")
    (tmp_path / "config.yaml").write_text(f"api_port: {taken}\n")
    (line,) = look(api_port="", config_file=str(tmp_path / "config.yaml")).problems
    assert line.endswith(f"choose another with api_port in {tmp_path / 'config.yaml'}, line 1")


def test_a_port_for_tls_is_looked_at_with_a_certificate(look: Look, taken: int) -> None:
    assert not look(tls_port=str(taken)).problems
    lines = look(tls_port=str(taken), ssl_certfile="/nowhere/a", ssl_keyfile="/nowhere/b").problems
    assert any(line.endswith("choose another with --tls-port") for line in lines)


def test_a_port_for_root_alone_is_named_with_the_origin(
    look: Look, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    (tmp_path / "config.yaml").write_text("port: 81\n")
    lines = look(port="", config_file=str(tmp_path / "config.yaml")).problems
    assert lines[0] == (
        "port 81 needs a privilege this user lacks; choose one above 1023, such as 9080, with "
        f"port in {tmp_path / 'config.yaml'}, line 1"
    )


@pytest.mark.parametrize("flags", [{"disable_worker": "true"}, {"server_url": "http://10.0.0.1"}])
def test_a_port_of_a_role_that_does_not_run_may_be_taken(
    flags: dict[str, str], look: Look, taken: int
) -> None:
    name = "worker_port" if "disable_worker" in flags else "port"
    assert not look(**flags, **{name: str(taken)}).problems


@pytest.mark.skipif(sys.platform != "linux", reason="reads the command line of a process")
def test_the_port_of_the_gpustack_of_this_directory_is_not_taken(
    look: Look, taken: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["python", "-m", "gpustack.app.supervisor", "3", str(tmp_path / "data")]
    monkeypatch.setattr(ports, "command_line", lambda pid: words if pid == os.getpid() else [])
    assert not look(port=str(taken)).problems
    for others in ([*words[:-1], "/another"], ["sleep", words[-1]], []):
        monkeypatch.setattr(ports, "command_line", lambda _, others=others: others)
        assert len(look(port=str(taken)).problems) == 1


# The system's own choice --------------------------------------------------------------------------------


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have the system give away ports of a range, but for those that are reserved."""

    def given_away(span: str, *, reserved: str = "") -> None:
        for name, text in (("_EPHEMERAL", span), ("_RESERVED", reserved)):
            path = tmp_path / name
            path.write_text(text + "\n")
            monkeypatch.setattr(ports, name, path)

    return given_away


def test_ports_that_the_system_gives_away_can_be_reserved(look: Look, system: Callable[..., None]) -> None:
    system("32768\t60999", reserved="1000,2000-2010")
    (line,) = look(port="33000", api_port="0").warnings
    assert line == (
        "--port 33000, --service-port-range 40000-40063, --distributed-worker-port-range 40200-40999: the system "
        "gives ports from 32768 to 60999 to outgoing connections, so one of these may be taken; reserve them with "
        "`sysctl -w net.ipv4.ip_local_reserved_ports=1000,2000-2010,33000,40000-40063,40200-40999`"
    )


def test_defaults_among_them_are_worth_a_hint(look: Look, system: Callable[..., None]) -> None:
    system("32768\t60999")
    found = look()
    assert not found.warnings
    (line,) = found.hints
    assert line.startswith("--service-port-range 40000-40063, --distributed-worker-port-range 40200-40999: ")
    assert line.endswith("`sysctl -w net.ipv4.ip_local_reserved_ports=40000-40063,40200-40999`")


@pytest.mark.parametrize(
    "reserved", ["40000-40063", "1,39000-41000", "40000-40030,40031-40063", "39000-40062,40063"]
)
def test_reserved_ports_are_right(reserved: str, look: Look, system: Callable[..., None]) -> None:
    system("32768\t60999", reserved=f"{reserved},40200-40999")
    found = look(service_port_range="40000-40063")
    assert (found.problems, found.warnings, found.hints) == ((), (), ())


@pytest.mark.parametrize("reserved", ["40000-40062", "40001-40063", "40000-40030,40032-40063"])
def test_ports_that_are_reserved_in_part_are_not(
    reserved: str, look: Look, system: Callable[..., None]
) -> None:
    system("32768\t60999", reserved=f"{reserved},40200-40999")
    (line,) = look(service_port_range="40000-40063").warnings
    assert re.search(rf"ports={reserved},40200-40999,40000-40063`$", line)


def test_of_a_range_that_reaches_into_it_only_what_is_in_it_has_to_be_reserved(
    look: Look, system: Callable[..., None]
) -> None:
    system("40060\t60999", reserved="40060-40063,40200-40999")
    assert not look().hints


def test_ports_below_and_above_are_right(look: Look, system: Callable[..., None]) -> None:
    system("40064\t60999")
    assert not look(api_port="61000", worker_port="65535").warnings


@pytest.mark.parametrize("text", ["", "odd", "1"])
def test_another_system_has_no_such_range(text: str, look: Look, system: Callable[..., None]) -> None:
    system(text)
    assert not look(port="33000").warnings
