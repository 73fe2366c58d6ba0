"""A real ``gpustack start`` for tests: the installed command, its own data directory, free ports."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

COMMAND = str(Path(sys.executable).with_name("gpustack"))
READY_WITHIN = 60.0
#: What the variables of the person who runs the tests must not change.
_CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("GPUSTACK_")}
#: Nobody outside this machine is asked for anything, and several gateway processes, each of which takes a while to start, are
#: for the tests that are about them.
QUIET = {"GPUSTACK_DISABLE_UPDATE_CHECK": "true", "GPUSTACK_GATEWAY_CONCURRENCY": "1"}


def eventually(holds: Callable[[], object], what: str, *, seconds: float = 10.0) -> None:
    """Return once ``holds()`` is true; fail, naming ``what`` was waited for, when that takes too long."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)


#: A test process has this many single ports, below the ephemeral ones: among those, anybody's connection may take one that
#: is closed for a moment.
_SINGLE = 1000
_singles = itertools.count(random.randrange(_SINGLE))


def _part() -> int:
    """Return which part of the ports this test process has."""
    return int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 4


def free_ports(count: int) -> list[int]:
    """Return ports that are free now, all different; no other test process gets them, and this one not soon again."""
    found: list[int] = []
    for number in itertools.islice(_singles, _SINGLE):
        port = 11000 + _SINGLE * _part() + number % _SINGLE
        with contextlib.suppress(OSError), socket.socket() as sock:
            sock.bind(("", port))
            found.append(port)
        if len(found) == count:
            return found
    raise AssertionError("no free ports")


#: Each test process has a part of the ports below the ephemeral ones, and hands each block of it out once.
_PART, _BLOCK = 3000, 20
_blocks = itertools.count()


def a_port_range(count: int) -> str:
    """Return ``N1-N2`` with ``count`` ports in a row (20 at most) that are free now, and that no other test gets."""
    for block in itertools.islice(_blocks, _PART // _BLOCK):
        first = 18000 + _PART * _part() + _BLOCK * block % _PART
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("", port))
            return f"{first}-{first + count - 1}"
    raise AssertionError("no free ports in a row")


@dataclass
class Running:
    """A GPUStack that was started; ``output`` is what it has said so far."""

    url: str
    data_dir: Path
    home: Path
    process: subprocess.Popen[bytes]
    output: str = ""
    _env: dict[str, str] = field(default_factory=dict)

    def cli(
        self, *args: str, check: bool = True, text: str | None = None, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run ``gpustack ARGS`` against it as another shell would."""
        env = {**self._env, "GPUSTACK_DATA_DIR": str(self.data_dir)}
        done = subprocess.run(
            [COMMAND, *args],
            input=text,
            capture_output=True,
            text=True,
            timeout=timeout,
            env=env,
            cwd=self.home,
        )
        if check and done.returncode != 0:
            raise AssertionError(
                f"gpustack {' '.join(args)}: status {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done

    def state(self) -> dict[str, Any]:
        """Return what the supervisor says of itself."""
        found: dict[str, Any] = json.loads((self.data_dir / "run" / "supervisor.json").read_text())
        return found

    def admin(self) -> httpx.Client:
        """Return a client with the rights of this machine's administrator."""
        token = (self.data_dir / "run" / "cli_token").read_text()
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {token}"}, timeout=30)

    def own_processes(self) -> list[psutil.Process]:
        """Return every process that belongs to it, engines and strays included."""
        return processes_of(self.data_dir)

    def end(self, number: int = signal.SIGTERM, timeout: float = 15) -> int:
        """Signal it, read what it says to the end, and return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        rest, _ = self.process.communicate(timeout=timeout)
        self.output += rest.decode()
        return self.process.returncode


def alive(pid: int) -> bool:
    """Tell whether the process runs; a zombie does not."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def processes_of(data_dir: Path) -> list[psutil.Process]:
    """Return the processes that have ``data_dir`` in their arguments, working directory or environment."""
    needle, found = str(data_dir), []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            env = process.environ()
            marks = " ".join(
                [*process.cmdline(), process.cwd(), *(v for k, v in env.items() if k != "GPUSTACK_DATA_DIR")]
            )
            if needle in marks:
                found.append(process)
    return found


def spawn(
    data_dir: Path,
    home: Path,
    flags: Sequence[str] = (),
    *,
    port: int | None = None,
    env: Mapping[str, str] | None = None,
    prefix: Sequence[str] = (),
    pass_fds: Sequence[int] = (),
) -> Running:
    """Start GPUStack without waiting for anything; ``env`` is added to the environment, ``prefix`` starts it."""
    home.mkdir(parents=True, exist_ok=True)
    port = port if port is not None else free_ports(1)[0]
    full = {**_CLEAN, "HOME": str(home), "NO_COLOR": "1", "PYTHONUNBUFFERED": "1", **QUIET, **(env or {})}
    command = [
        *prefix,
        COMMAND,
        "start",
        "--port",
        str(port),
        "--data-dir",
        str(data_dir),
        "--worker-port",
        "0",
        "--api-port",
        "0",
        *flags,
    ]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=full,
        cwd=home,
        pass_fds=pass_fds,
    )
    return Running(url=f"http://127.0.0.1:{port}", data_dir=data_dir, home=home, process=process, _env=full)


def wait_ready(running: Running) -> Running:
    """Read its output until it says that it is ready."""
    assert running.process.stdout is not None
    fd, deadline = running.process.stdout.fileno(), time.monotonic() + READY_WITHIN
    # "Next" is the last line of what it says when ready.
    while "Next," not in running.output and time.monotonic() < deadline:
        if select.select([fd], [], [], 1)[0]:
            if not (chunk := os.read(fd, 65536)):
                break
            running.output += chunk.decode()
    if "is ready" not in running.output:
        running.end(signal.SIGKILL)
        logs = "\n".join(
            f"--- {path.name}\n{path.read_text()[-4000:]}"
            for path in (running.data_dir / "log").glob("*.log")
        )
        raise AssertionError(f"GPUStack did not become ready:\n{running.output}\n{logs}")
    return running


@contextlib.contextmanager
def gpustack(
    data_dir: Path,
    home: Path,
    flags: Sequence[str] = (),
    *,
    port: int | None = None,
    env: Mapping[str, str] | None = None,
) -> Iterator[Running]:
    """Run GPUStack until the block ends; whatever is left of it then is killed."""
    running = spawn(data_dir, home, flags, port=port, env=env)
    try:
        yield wait_ready(running)
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired, ValueError):
            running.end()
        for process in processes_of(data_dir):
            with contextlib.suppress(psutil.Error):
                process.kill()
