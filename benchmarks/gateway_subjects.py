"""What is compared: our gateway as it is in a GPUStack and with its bare work, nginx, a byte splice, and a proxy of uvicorn and aiohttp."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from common import free_port
from gateway_load import KEYS, MODELS, key

from gpustack.app import doors
from gpustack.dataplane.table.copy import TableCopy, TableFile
from gpustack.dataplane.table.wire import Begin, Part, Whole
from gpustack.plugin.routing import Principal, Route, Target, digest

HERE = Path(__file__).parent
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin") or shutil.which(
    "nginx"
)
#: Instances of each model. All are one engine's port, as nginx has one, too.
INSTANCES = 2

_NGINX = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log crit;
events {{ worker_connections 4096; }}
http {{
    access_log off; keepalive_requests 100000000; client_max_body_size 64m;
    client_body_temp_path {folder}/1; proxy_temp_path {folder}/2;
    fastcgi_temp_path {folder}/3; uwsgi_temp_path {folder}/4; scgi_temp_path {folder}/5;
    upstream engine {{ server 127.0.0.1:{engine}; keepalive 512; keepalive_requests 100000000; }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        client_body_buffer_size 256k;
        location / {{
            proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection "";
            proxy_buffering off;
        }}
    }}
}}
"""


@dataclass(frozen=True)
class Subject:
    """One of them, running. ``pid`` is None for the engine asked directly."""

    name: str
    port: int
    pid: int | None = None

    def cpu(self) -> float:
        """Return the seconds of CPU it has taken, its threads' included."""
        if self.pid is None:
            return 0.0
        # The clock of another process, as clock_getcpuclockid makes it on Linux: to the nanosecond, where /proc has ticks.
        return time.clock_gettime((~self.pid << 3) | 2)

    def megabytes(self) -> tuple[float, float]:
        """Return its memory: its share of it (PSS), and all that is resident."""
        found = psutil.Process(self.pid).memory_full_info()
        return found.pss / 1e6, found.rss / 1e6


class Places:
    """The two cores: one for whom is measured, the other one for load and engine."""

    def __init__(self) -> None:
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) < 2:
            raise SystemExit("this needs two cores: one for the gateway, one for load and engine")
        self.subject, self.load = cores[0], cores[1]

    def command(self, core: int, words: Sequence[str]) -> list[str]:
        """Return a command that runs on ``core``."""
        return ["taskset", "-c", str(core), *words]


@contextlib.contextmanager
def running(
    command: Sequence[str], port: int, *, ends_by: int = signal.SIGTERM, **more: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the block ends; it begins once ``port`` is answered on."""
    process = subprocess.Popen(command, **more)
    try:
        _answering(process, port)
        yield process
    finally:
        process.send_signal(ends_by)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answering(process: subprocess.Popen[bytes], port: int) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise SystemExit(f"this did not begin to answer: {process.args!r}")


@contextlib.contextmanager
def engine(places: Places) -> Iterator[Subject]:
    """Run the engine."""
    port = free_port()
    command = places.command(places.load, [sys.executable, str(HERE / "gateway_engine.py"), str(port)])
    with running(command, port):
        yield Subject("direct", port)


@contextlib.contextmanager
def ours(places: Places, folder: Path, engine_port: int) -> Iterator[Subject]:
    """Run one gateway process as the supervisor does, by the table that it finds on disk, and a stand-in for the server."""
    _write_table(folder / "data" / "gateway" / "table", engine_port)
    (folder / "data" / "run" / doors.GATEWAYS).mkdir(parents=True)
    (folder / "log").mkdir()
    settings = {
        "data_dir": str(folder / "data"),
        "log_dir": str(folder / "log"),
        "debug": False,
        "enable_cors": False,
        "trusted_proxies": [],
        "gateway_header_timeout": 10.0,
        "gateway_body_timeout": 30.0,
        "gateway_keep_alive_timeout": 75.0,
        "allow_origins": [],
        "allow_methods": [],
        "allow_headers": [],
        "allow_credentials": False,
        "ssl_certfile": None,
        "ssl_keyfile": None,
    }
    # One of two: so that what processes count together is counted so.
    configuration = {
        "settings": settings,
        "mark": "0" * 64,
        "seat": 0,
        "seats": 2,
        "life": "1",
        "api_port": 1,
    }
    out, ready = os.pipe()
    link = folder / "data" / "run" / "gateway.sock"
    command = places.command(places.load, [sys.executable, str(HERE / "gateway_server.py"), str(link)])
    with (
        socket.create_server(("127.0.0.1", 0), backlog=4096) as listening,
        subprocess.Popen(command) as server,
    ):
        port = listening.getsockname()[1]
        arguments = {"ready_fd": ready, "sockets": {"http": listening.fileno()}, "parent": None}
        words = [sys.executable, "-P", "-m", "gpustack.app.child", "gateway-0", json.dumps(arguments)]
        process = subprocess.Popen(
            places.command(places.subject, words),
            stdin=subprocess.PIPE,
            pass_fds=[ready, listening.fileno()],
            stderr=(folder / "log" / "gateway.log").open("wb"),
        )
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(configuration).encode() + b"\n")
            process.stdin.flush()
            _serving(process, port, folder / "log" / "gateway.log")
            yield Subject("gateway", port, process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            server.terminate()
            os.close(out)
            os.close(ready)


@contextlib.contextmanager
def core(places: Places, folder: Path, engine_port: int) -> Iterator[Subject]:
    """Run the gateway with the bare work of one (``gateway_core.py``), by the same table."""
    port = free_port()
    folder.mkdir()
    _write_table(folder / "table", engine_port)
    words = [sys.executable, str(HERE / "gateway_core.py"), str(port), str(folder)]
    with running(places.command(places.subject, words), port) as process:
        yield Subject("core", port, process.pid)


def _serving(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Wait until a request is answered: connections wait in our own socket before that."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 20) as sock:
        sock.settimeout(20)
        sock.sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        if sock.recv(100).startswith(b"HTTP/1.1 401") and process.poll() is None:
            return
    raise SystemExit(f"the gateway did not begin to serve: {log.read_text()[-2000:]}")


def _write_table(path: Path, engine_port: int) -> None:
    """Write the table as a gateway does: :data:`MODELS` models with two instances each, :data:`KEYS` keys."""
    routes = {
        f"model-{number}": Route(
            name=f"model-{number}",
            created=1,
            categories=("llm",),
            targets=tuple(
                Target(
                    instance_id=number * INSTANCES + each, host="127.0.0.1", port=engine_port, slots=1 << 16
                )
                for each in range(INSTANCES)
            ),
        )
        for number in range(MODELS)
    }
    principals = {
        digest(key(number)): Principal(user_id=number // 3, username=f"user-{number // 3}", key_id=number)
        for number in range(KEYS)
    }
    copy = TableCopy(lambda table, changed: None)
    for message in (Begin(1), Part(routes=routes, principals=principals), Whole(1)):
        copy.take(message)
    asyncio.run(TableFile(path, copy).write())


@contextlib.contextmanager
def nginx(places: Places, folder: Path, engine_port: int) -> Iterator[Subject]:
    """Run nginx as a plain proxy with one worker, without an access log."""
    port = free_port()
    folder.mkdir()
    folder.chmod(0o777)  # its files belong to nobody
    (folder / "nginx.conf").write_text(_NGINX.format(folder=folder, port=port, engine=engine_port))
    words = [str(NGINX), "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf")]
    with running(places.command(places.subject, words), port) as process:
        yield Subject("nginx", port, process.pid)


@contextlib.contextmanager
def program(places: Places, name: str, engine_port: int) -> Iterator[Subject]:
    """Run ``gateway_NAME.py``."""
    port = free_port()
    words = [sys.executable, str(HERE / f"gateway_{name}.py"), str(port), str(engine_port)]
    with running(places.command(places.subject, words), port) as process:
        yield Subject(name, port, process.pid)


def missing() -> dict[str, str]:
    """Return what cannot be compared with here, and why."""
    found = {}
    if NGINX is None:
        found["nginx"] = "nginx is not installed (as root, scripts/system-packages.sh installs it)"
    for module in ("uvicorn", "aiohttp"):
        if importlib.util.find_spec(module) is None:
            found["asgi"] = f"{module} is not in this environment (.venv/bin/pip install {module})"
    return found
