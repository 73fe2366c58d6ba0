"""A real GPUStack for tests, in a folder and on ports of its own.

    with running_gpustack(folder) as gpustack:
        gpustack.deploy("demo", "chat")
        print(gpustack.chat("chat", "What is GPUStack?"))

It is the installed program with all its processes. Everything that was started is ended with the block.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    import httpx

#: Seconds.
_READY_WITHIN = 120.0
_ENDS_WITHIN = 30.0
_LOOK = 0.1


@dataclass
class RunningServer:
    """A GPUStack that runs."""

    #: Where it answers, without a slash at its end.
    url: str
    #: An administrator's.
    api_key: str = field(repr=False)
    data_dir: Path
    #: What it has said is in this file.
    output: Path
    _process: subprocess.Popen[bytes] = field(repr=False)
    _env: Mapping[str, str] = field(repr=False)

    def client(self, *, timeout: float = 60.0) -> httpx.Client:
        """Return a client of its API with the administrator's rights; paths are as in ``/v2/models``."""
        import httpx

        headers = {"Authorization": f"Bearer {self.api_key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=timeout, trust_env=False)

    def deploy(self, source: Path | str, name: str, *, timeout: float = 600.0, **spec: Any) -> dict[str, Any]:
        """Serve a model and return it once all its copies answer.

        ``source`` is a path on this machine (a Path, or a text with a slash), or the name of a model that a plugin brings. ``spec`` is more of what
        ``POST /v2/models`` takes, as ``backend="acme"`` or ``backend_parameters=["--ctx-size=512"]``. Raises
        AssertionError with what the model says of itself when it fails, or does not run within ``timeout`` seconds.
        """
        where = (
            {"source": "local_path", "local_path": str(Path(source).absolute())}
            if isinstance(source, Path) or os.sep in source
            else {"source": "bundled", "bundled_name": source}
        )
        with self.client() as client:
            model: dict[str, Any] = _answer(client.post("/v2/models", json={"name": name, **where, **spec}))
            deadline = time.monotonic() + timeout
            while model["ready_replicas"] < model["replicas"]:
                time.sleep(_LOOK)
                _watch(client, model, f"within {timeout:g} s" if time.monotonic() >= deadline else "")
                model = _answer(client.get(f"/v2/models/{model['id']}"))
            return model

    def chat(self, model: str, text: str, **more: Any) -> str:
        """Ask a deployed model one thing through the API, and return what it says."""
        body = {"model": model, "messages": [{"role": "user", "content": text}], **more}
        with self.client(timeout=600) as client:
            answer = _answer(client.post("/v1/chat/completions", json=body))
        return str(answer["choices"][0]["message"]["content"])

    def cli(self, *args: str, check: bool = True, timeout: float = 600.0) -> subprocess.CompletedProcess[str]:
        """Run ``gpustack ARGS`` against it as another shell would. Raises AssertionError when it fails, unless told not to."""
        done = subprocess.run(
            [*_COMMAND, *args],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**self._env, "GPUSTACK_DATA_DIR": str(self.data_dir)},
            cwd=self.output.parent,
            check=False,
        )
        assert not check or done.returncode == 0, (
            f"gpustack {' '.join(args)}: status {done.returncode}\n{done.stdout}{done.stderr}"
        )
        return done

    def stop(self) -> None:
        """End it, its engines and whatever else is left of it. Nothing happens the second time."""
        family = _family(self._process)
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_ENDS_WITHIN)
        _kill([*family, *_left_of(self.data_dir, self._env[_MARK])])
        self._process.wait()


#: In the environment of all that one run starts, with a value that no other run has. It does not begin as an option.
_MARK = "_GPUSTACK_TESTING_RUN"
#: ``gpustack`` of this very environment.
_COMMAND = (sys.executable, "-m", "gpustack")


@contextmanager
def running_gpustack(
    folder: Path | None = None, *flags: str, env: Mapping[str, str] | None = None
) -> Iterator[RunningServer]:
    """Run ``gpustack start`` with ``flags`` below ``folder`` until the block ends; ``env`` is added to its environment.

    Without a folder it gets one that goes with it. Of the variables of whoever runs the tests, those that begin with
    ``GPUSTACK_`` are left out. Raises AssertionError with the end of what it said when it does not become ready.
    """
    with contextlib.ExitStack() as stack:
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="gpustack-test-"))
            # The database's own user must come in, where the tests run as root.
            folder.chmod(0o755)
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
        server = _start(folder, flags, env or {})
        stack.callback(server.stop)
        server.url, server.api_key = _ready(server)
        yield server


def _start(folder: Path, flags: Sequence[str], env: Mapping[str, str]) -> RunningServer:
    home, data_dir = folder / "home", folder / "data"
    home.mkdir(parents=True, exist_ok=True)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GPUSTACK_")}
    full = {**clean, "HOME": str(home), "NO_COLOR": "1", "GPUSTACK_DISABLE_UPDATE_CHECK": "true", **env}
    full[_MARK] = uuid.uuid4().hex
    output = home / "output.txt"
    command = [
        *(*_COMMAND, "start", "--data-dir", str(data_dir)),
        *("--port", "0", "--api-port", "0", "--worker-port", "0", *flags),
    ]
    with output.open("wb") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=full, cwd=home
        )
    return RunningServer("", "", data_dir, output, process, full)


def _ready(server: RunningServer) -> tuple[str, str]:
    """Wait until it is ready; return where it answers and a new key of its administrator's."""
    import httpx

    deadline = time.monotonic() + _READY_WITHIN
    while (port := _ready_on(server.data_dir / "run" / "supervisor.json")) is None:
        ended = server._process.poll()
        assert ended is None, f"GPUStack ended with status {ended}:\n{_said(server)}"
        assert time.monotonic() < deadline, (
            f"GPUStack is not ready after {_READY_WITHIN:g} s:\n{_said(server)}"
        )
        time.sleep(_LOOK)
    url = f"http://127.0.0.1:{port}"
    token = (server.data_dir / "run" / "cli_token").read_text(encoding="utf-8").strip()
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        client.headers["Authorization"] = f"Bearer {token}"
        key = _answer(client.post("/v2/api-keys", json={"name": "gpustack.testing"}))
    return url, str(key["value"])


def _ready_on(state: Path) -> int | None:
    """Return the port that it listens on; None while it is not ready."""
    try:
        said = json.loads(state.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return int(said["ports"]["http"]) if said.get("ready") else None


def _said(server: RunningServer) -> str:
    logs = sorted((server.data_dir / "log").glob("*.log")) if (server.data_dir / "log").is_dir() else []
    return "\n".join(
        f"--- {each.name}\n{each.read_text(encoding='utf-8', errors='replace')[-4000:]}"
        for each in (server.output, *logs)
    )


def _watch(client: httpx.Client, model: dict[str, Any], too_late: str) -> None:
    """Raise AssertionError, with what its instances say, when the model has failed or it is too late."""
    query = {"model_id": model["id"], "page": -1}
    found = _answer(client.get("/v2/model-instances", params=query))["items"]
    failed = any(each["state"] == "error" for each in found)
    says = "; ".join(f"{each['name']} is {each['state']}: {each['state_message']}" for each in found)
    assert not failed, f"{model['name']} does not run: {says}"
    assert not too_late, f"{model['name']} does not run {too_late}: {says}"


def _answer(response: httpx.Response) -> Any:
    assert response.is_success, (
        f"{response.request.method} {response.request.url.path}: status {response.status_code}: {response.text[:1000]}"
    )
    return response.json()


def _family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Return the process with all that descends from it; nothing once it has ended."""
    if process.poll() is not None:
        return []
    with contextlib.suppress(psutil.Error):
        head = psutil.Process(process.pid)
        return [head, *head.children(recursive=True)]
    return []


def _left_of(data_dir: Path, mark: str) -> list[psutil.Process]:
    """Return the processes that are a run's beyond doubt, also those whose parents ended before them.

    A path in somebody's arguments or working directory is no proof: a shell may stand there, a pager read its logs.
    """
    from gpustack.worker.runners.environment import RECORD_MARKER

    places = {data_dir, data_dir.resolve()}
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            env = process.environ()
            # An engine is started with a clean environment, and with the path of its record.
            record = Path(env.get(RECORD_MARKER, ""))
            if env.get(_MARK) == mark or places & {*record.parents}:
                found.append(process)
    return found


def _kill(processes: Sequence[psutil.Process]) -> None:
    """End them at once. A number that has come to another process meanwhile is left alone."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid():
                process.kill()
