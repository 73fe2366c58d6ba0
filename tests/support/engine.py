"""The real llama.cpp engine, installed by the real installer below ``.cache/engines`` and kept for the next run.

``engine`` is the session fixture: its folders can be given to a worker as ``--bin-dir`` and ``--data-dir`` of an
installer, and its command can be started as it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gpustack.kit.process import end_tree
from gpustack.plugin import Host, NoSettings, PipxPackage, Platform
from support.cache import CACHE, locked

LINUX = Platform(system="linux", machine="x86_64")


@dataclass(frozen=True)
class InstalledEngine:
    """An installed engine: the installer's folders, and the executable."""

    data_dir: Path
    bin_dir: Path
    command: Path
    version: str
    artifact: PipxPackage


def llama_cpp_backend(folder: Path) -> Any:
    """Return the backend, which may be installed or lie beside us in the repository."""
    from gpustack_backends import LlamaCpp

    return LlamaCpp(NoSettings(), Host(log=logging.getLogger("test"), data_dir=folder, bin_dir=folder))


def install_engine(version: str = "") -> InstalledEngine:
    """Return the engine of ``version`` (the default one), installing it if the cache has none.

    The folder depends on the interpreter, and ``GPUSTACK_TEST_ENGINES`` moves it elsewhere.
    """
    from gpustack.worker.artifacts import ArtifactInstaller

    interpreter = hashlib.sha256(f"{sys.version}{sys.base_prefix}".encode()).hexdigest()[:8]
    root = Path(os.environ.get("GPUSTACK_TEST_ENGINES") or CACHE / "engines") / interpreter
    backend = llama_cpp_backend(root)
    artifact = backend.artifact(version or backend.default_version, LINUX)
    installer = ArtifactInstaller(bin_dir=root / "bin", data_dir=root)
    with locked(root / ".tests.lock"):
        command = asyncio.run(installer.ensure(backend.name, artifact))
    return InstalledEngine(root, root / "bin", command, artifact.version, artifact)


@pytest.fixture(scope="session")
def engine() -> InstalledEngine:
    """The default version of the engine, installed."""
    from concurrent.futures import ThreadPoolExecutor

    # In a thread of its own: a test's event loop may be running in this one.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(install_engine).result()


@dataclass
class RunningEngine:
    """A server that a test started."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path
    started: float = field(default_factory=time.monotonic)

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    def wait_ready(self, seconds: float = 60.0) -> None:
        """Return when it answers; fail with its log when it ends or does not."""
        while time.monotonic() < self.started + seconds:
            assert self.process.poll() is None, f"it ended:\n{self.log.read_text()}"
            with contextlib.suppress(OSError):
                if urllib.request.urlopen(f"{self.url}/health", timeout=2).status == 200:
                    return
            time.sleep(0.02)
        pytest.fail(f"not ready after {seconds} s:\n{self.log.read_text()}")

    def get(self, path: str) -> str:
        """Return the body of a GET."""
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return str(answer.read().decode())

    def post(self, path: str, body: dict[str, Any], *, seconds: float = 60) -> Any:
        """Return the JSON answer of a POST; of a stream, the list of its events' texts."""
        request = urllib.request.Request(
            self.url + path, data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=seconds) as answer:
            text = answer.read().decode()
        if body.get("stream"):
            return [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
        return json.loads(text)

    def stop(self, how: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(how)
        return self.process.wait(10)


@contextlib.contextmanager
def running(argv: list[str] | tuple[str, ...], port: int, log: Path) -> Iterator[RunningEngine]:
    """Run an engine's command line; whatever is left of it at the end is killed."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield RunningEngine(process, port, log)
    finally:
        end_tree(process.pid, grace=0.5)
        process.wait(5)
