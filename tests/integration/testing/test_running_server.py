"""The fixture ``gpustack_server`` gives a GPUStack that works, and leaves nothing of it behind."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from gpustack.testing.server import _MARK, RunningServer
from gpustack.worker.runners.environment import RECORD_MARKER
from support.running import processes_of

pytestmark = pytest.mark.xdist_group("testing-server")

CONFTEST = """
import pytest
from gpustack.testing import fakes

@pytest.fixture(scope="session")
def gpustack_server_env():
    return {"PYTHONPATH": str(fakes.path("fake-engine", "fake-gpus"))}

@pytest.fixture(scope="session")
def gpustack_server_flags(tmp_path_factory):
    fleet = tmp_path_factory.mktemp("fleet") / "fleet.yaml"
    fleet.write_text("devices: [{name: NVIDIA H100, memory: 80GiB, count: 2}]")
    return ["--fake-gpus-file", str(fleet)]
"""
TESTS = """
from pathlib import Path

import httpx
import pytest
from gpustack.testing import fakes


def test_a_model_is_deployed_and_answers(gpustack_server, tmp_path):
    Path(WHERE).write_text(str(gpustack_server.data_dir))
    parameters = ["--answer=hello from the fake", "--claim-vram=120GiB"]

    model = gpustack_server.deploy(
        fakes.a_model(tmp_path), "fake", backend="fake", backend_parameters=parameters, timeout=120
    )

    assert model["ready_replicas"] == 1
    assert gpustack_server.chat("fake", "hi") == "hello from the fake"
    with gpustack_server.client() as client:
        (instance,) = client.get("/v2/model-instances").json()["items"]
    assert instance["gpu_indexes"] == [0, 1]
    assert "fake" in gpustack_server.cli("ps").stdout


def test_the_key_is_an_administrators(gpustack_server):
    assert gpustack_server.api_key not in repr(gpustack_server)
    with gpustack_server.client() as client:
        assert client.get("/v2/users/me").json()["is_admin"]
    assert httpx.get(f"{gpustack_server.url}/v2/models").status_code == 401


def test_what_fails_says_why(gpustack_server, tmp_path):
    parameters = ["--no-such-parameter=1"]
    with pytest.raises(AssertionError, match="no parameter of the fake engine"):
        gpustack_server.deploy(
            fakes.a_model(tmp_path), "wrong", backend="fake", backend_parameters=parameters, timeout=20
        )


def test_it_is_stopped_and_once_is_enough(gpustack_server):
    gpustack_server.stop()
    gpustack_server.stop()
    with pytest.raises(httpx.ConnectError):
        gpustack_server.client().get("/healthz")
"""


def run(
    folder: Path, tests: str, conftest: str = "", *, timeout: float = 200
) -> subprocess.CompletedProcess[str]:
    """Run tests as a plugin's author would, with our pytest plugin and no other."""
    (folder / "conftest.py").write_text(conftest)
    (folder / "test_acme.py").write_text(tests)
    # Named here, whether or not this environment's metadata name it already.
    env = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""}
    flags = ["-q", "-p", "gpustack.testing.pytest_plugin", "-p", "no:cacheprovider", "-c", os.devnull]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *flags, "--rootdir", str(folder), str(folder)],
        env=env,
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=folder,
    )


def test_the_fixture_serves_a_session_and_leaves_nothing(tmp_path: Path) -> None:
    where = tmp_path / "where"

    done = run(tmp_path, f"WHERE = {str(where)!r}\n{TESTS}", CONFTEST)

    assert "4 passed" in done.stdout, done.stdout[-6000:] + done.stderr
    data_dir = Path(where.read_text())
    assert not data_dir.exists()
    assert processes_of(data_dir) == []


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    conftest = """
    import pytest

    @pytest.fixture(scope="session")
    def gpustack_server_flags():
        return ["--no-such-flag"]
    """

    done = run(tmp_path, "def test_it(gpustack_server): pass", textwrap.dedent(conftest))

    assert done.returncode == 1
    assert "GPUStack ended with status 2" in done.stdout
    assert "No such option" in done.stdout


def test_a_run_that_does_not_use_it_loads_next_to_nothing() -> None:
    code = (
        "import sys, pytest; before = set(sys.modules); import gpustack.testing.pytest_plugin;"
        "print(sorted(set(sys.modules) - before))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)

    assert done.stdout.strip() == str(["gpustack", "gpustack.testing", "gpustack.testing.pytest_plugin"])


@pytest.fixture
def sleeper() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """``sleeper(cwd=…, env=…)`` starts a process that does nothing."""
    with contextlib.ExitStack() as stack:

        def start(*words: str, env: dict[str, str] | None = None, **more: Any) -> subprocess.Popen[bytes]:
            command = ["sh", "-c", "sleep 60 & wait", *words]
            process = subprocess.Popen(command, env={**os.environ, **(env or {})}, **more)

            def end() -> None:
                with contextlib.suppress(psutil.Error):
                    for child in psutil.Process(process.pid).children():
                        child.kill()
                process.kill()
                process.wait()

            stack.callback(end)
            return process

        yield start


def test_only_its_own_processes_are_killed(
    sleeper: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    data, other = tmp_path / "data", tmp_path / "database"
    for each in (data, other):
        each.mkdir()
    run = sleeper()
    child = _only_child(run)
    mine = [
        sleeper(env={_MARK: "this run"}),
        sleeper(env={RECORD_MARKER: str(data / "worker/engines/1.json")}),
    ]
    strangers = [
        sleeper(cwd=other),
        sleeper(cwd=data),
        sleeper(str(data / "log/server.log")),
        sleeper(env={"DATA": str(data), _MARK: "another run"}),
        sleeper(env={RECORD_MARKER: str(other / "worker/engines/1.json")}),
    ]

    RunningServer("", "", data, tmp_path / "output", run, {_MARK: "this run"}).stop()

    psutil.wait_procs([child], timeout=5)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    assert [each.wait(5) for each in mine] == [-9, -9]
    assert [each.poll() for each in strangers] == [None] * len(strangers)


def _only_child(process: subprocess.Popen[bytes]) -> psutil.Process:
    while not (children := psutil.Process(process.pid).children()):
        pass
    return children[0]
