"""Whatever goes in: one clear line, an exit status that means something, no traceback, nothing lost."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest

from support.engine import InstalledEngine
from support.running import COMMAND, Running, a_port_range, free_ports, gpustack, spawn

pytestmark = pytest.mark.xdist_group("e2e-bad-input")


def refused(stack: Running, *args: str, status: int = 1) -> str:
    """Run a command that must fail, and return its one line."""
    done = stack.cli(*args, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == status, said
    assert "Traceback" not in said
    return said


def refused_start(data_dir: Path, home: Path, flags: Sequence[str] = (), *, status: int = 1) -> str:
    """Start a GPUStack that must not come up, and return what it says."""
    running = spawn(data_dir, home, flags)
    # SIGCONT changes nothing: the process ends by itself.
    assert running.end(signal.SIGCONT, timeout=60) == status, running.output
    assert "Traceback" not in running.output
    return running.output


def test_a_missing_path(stack: Running) -> None:
    assert "/nowhere/model.gguf" in refused(stack, "deploy", "/nowhere/model.gguf", "--name", "x")
    assert json.loads(stack.cli("ls", "--json").stdout) == []


def test_a_file_that_is_no_model(stack: Running) -> None:
    (stack.home / "notes.txt").write_text("not a model at all")
    said = refused(stack, "deploy", "notes.txt", "--name", "notes")
    assert "is not a model" in said
    assert "notes.txt" in said
    stack.cli("rm", "notes")


def test_a_truncated_model(stack: Running, tiny_gguf: Path) -> None:
    content = tiny_gguf.read_bytes()
    (stack.home / "half.gguf").write_bytes(content[: len(content) // 2])
    assert "truncated" in refused(stack, "deploy", "half.gguf", "--name", "half")
    stack.cli("rm", "half")


def test_an_engine_that_ends_at_once_shows_its_last_lines(stack: Running, tiny_gguf: Path) -> None:
    said = refused(
        stack,
        "deploy",
        str(tiny_gguf),
        "--name",
        "broken",
        "--backend-parameter",
        "--no-such-flag",
        "--timeout",
        "20",
    )
    assert "no-such-flag" in said
    stack.cli("rm", "broken")


def test_an_unknown_backend(stack: Running, tiny_gguf: Path) -> None:
    said = refused(stack, "deploy", str(tiny_gguf), "--name", "other", "--backend", "acme")
    assert "acme" in said
    assert "llama-cpp" in said
    assert json.loads(stack.cli("ls", "--json").stdout) == []


def test_a_name_that_is_taken(stack: Running, tiny_gguf: Path) -> None:
    stack.cli("deploy", str(tiny_gguf), "--name", "twice", "--replicas", "0", "--no-wait")
    assert "twice" in refused(stack, "deploy", str(tiny_gguf), "--name", "twice")
    stack.cli("rm", "twice")


def test_removing_what_is_not_there(stack: Running) -> None:
    assert "nothing" in refused(stack, "rm", "nothing")


def test_wrong_passwords_are_throttled(stack: Running) -> None:
    form = {"username": "admin", "password": "wrong"}
    with httpx.Client(base_url=stack.url) as stranger:
        answers = [stranger.post("/auth/login", data=form) for _ in range(12)]
    assert answers[0].status_code == 401
    assert answers[-1].status_code == 429
    assert int(answers[-1].headers["retry-after"]) >= 1


@pytest.mark.parametrize(
    ("content", "status", "word"),
    [
        (b"{not json", 400, "JSON"),
        (b'{"name": "x", "local_path": "/x", "colour": "red"}', 400, "colour"),
        (b'{"name": "x"}', 400, "local_path"),
        (b'{"name": "x", "local_path": "/x", "replicas": "many"}', 400, "replicas"),
        (b'{"name": "x", "local_path": "/x", "description": "' + b"x" * (10 << 20) + b'"}', 413, ""),
    ],
    ids=["not JSON", "unknown field", "missing field", "wrong type", "10 MB"],
)
def test_bodies_that_are_wrong(stack: Running, content: bytes, status: int, word: str) -> None:
    with stack.admin() as admin:
        answer = admin.post("/v2/models", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"code", "reason", "message"}
    assert word in answer.json()["message"]


@pytest.mark.slow
def test_a_port_range_that_is_used_up(place: Path, engine: InstalledEngine, tiny_gguf: Path) -> None:
    ports = a_port_range(1)
    flags = ["--bin-dir", str(engine.bin_dir), "--service-port-range", ports]
    with gpustack(place / "ports", place / "ports home", flags) as running, socket.socket() as sock:
        sock.bind(("127.0.0.1", int(ports.split("-")[0])))
        sock.listen()
        said = refused(running, "deploy", str(tiny_gguf), "--name", "tiny", "--timeout", "15")
        assert "--service-port-range" in said


def test_a_pipx_that_is_not_there(place: Path) -> None:
    said = refused_start(place / "pipx", place / "home", ["--pipx-path", "/nowhere/pipx"], status=2)
    assert "/nowhere/pipx" in said
    assert "--pipx-path" in said


@pytest.mark.slow
def test_a_pipx_that_does_not_work(place: Path, tiny_gguf: Path) -> None:
    with gpustack(place / "pipx", place / "pipx home", ["--pipx-path", "/bin/false"]) as running:
        said = refused(running, "deploy", str(tiny_gguf), "--name", "tiny", "--timeout", "15")
        assert "pipx" in said


@pytest.mark.slow
def test_a_package_index_that_cannot_be_reached(place: Path, tiny_gguf: Path) -> None:
    index = f"http://127.0.0.1:{free_ports(1)[0]}/"
    env = {"PIP_INDEX_URL": index, "UV_DEFAULT_INDEX": index, "PIP_RETRIES": "0", "UV_HTTP_RETRIES": "0"}
    env |= {
        "PIP_EXTRA_INDEX_URL": "",
        "PIP_FIND_LINKS": "",
        "UV_FIND_LINKS": "",
        "PIP_CONFIG_FILE": "/dev/null",
    }
    env |= {"UV_CACHE_DIR": str(place / "no cache"), "PIP_CACHE_DIR": str(place / "no cache")}
    with gpustack(place / "offline", place / "offline home", env=env) as running:
        said = refused(running, "deploy", str(tiny_gguf), "--name", "tiny", "--timeout", "25")
        assert "index" in said
        assert "reached" in said


def test_a_password_that_is_too_short(place: Path) -> None:
    said = refused_start(place / "short", place / "home", ["--bootstrap-password", "geheim"], status=2)
    assert "--bootstrap-password" in said
    assert "geheim" not in said


@pytest.mark.slow
def test_a_database_that_cannot_be_reached(place: Path) -> None:
    url = f"postgresql://someone:very-secret@127.0.0.1:{free_ports(1)[0]}/gpustack"
    said = refused_start(place / "unreachable", place / "home", ["--database-url", url])
    assert "127.0.0.1" in said
    assert "very-secret" not in said


def test_a_data_directory_from_a_newer_version(place: Path) -> None:
    data_dir = place / "newer"
    data_dir.mkdir()
    (data_dir / "version").write_text("99.0.0\n")
    assert "99.0.0" in refused_start(data_dir, place / "home")
    assert (data_dir / "version").read_text() == "99.0.0\n"


def test_a_data_directory_that_is_a_file(place: Path) -> None:
    (place / "a file").write_text("")
    assert str(place / "a file") in refused_start(place / "a file", place / "home", status=2)


def test_a_data_directory_that_cannot_be_written(place: Path) -> None:
    assert "/proc/gpustack" in refused_start(Path("/proc/gpustack"), place / "home", status=2)


def test_wrong_options_are_all_named_at_once(place: Path) -> None:
    flags = ["--service-port-range", "9-1", "--system-reserved", "{"]
    said = refused_start(place / "options", place / "home", flags, status=2)
    assert "--service-port-range" in said
    assert "--system-reserved" in said


def test_an_option_that_does_not_exist() -> None:
    done = subprocess.run([COMMAND, "start", "--prot", "80"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "--port" in done.stderr


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_privileged_port_without_the_right(tmp_path: Path) -> None:
    start = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
    if int(start.read_text()) <= 79:
        pytest.skip("on this machine every user may open low ports")
    from gpustack.kit.errors import GPUStackError
    from gpustack.kit.net import listen

    pid = os.fork()
    if pid == 0:
        os.setgid(65534)
        os.setuid(65534)
        try:
            listen(79)
        except GPUStackError as error:
            os._exit(0 if "--port" in error.message and "79" in error.message else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
