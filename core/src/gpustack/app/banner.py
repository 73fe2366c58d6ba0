"""What the supervisor tells the person in front of the terminal."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpustack import __version__
from gpustack.kit.paths import default_data_dir


def say(text: str) -> None:
    """Tell the person in front of the terminal; nobody may be reading any more."""
    with contextlib.suppress(OSError):
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def reloaded(applied: Sequence[str], needs_restart: Sequence[str]) -> str:
    """Return what is said when the settings have been read again."""
    said = f"applied: {', '.join(applied)}" if applied else "nothing to apply has changed"
    if needs_restart:
        said += f"; changed, and takes `gpustack restart`: {', '.join(needs_restart)}"
    return f"the settings have been read again; {said}"


def server_ready(settings: dict[str, Any], url: str, tls: str, seconds: float) -> str:
    """Return what is said when the server is ready; ``tls`` is where it speaks TLS, empty for nowhere."""
    data_dir = Path(settings["data_dir"])
    password = data_dir / "initial_admin_password"
    command = call(data_dir)
    lines = [
        f"GPUStack {__version__} is ready after {seconds:.1f} s.",
        "",
        f"  URL       {url}",
        *([f"  TLS       {tls}"] if tls else []),
        "  User      admin, password in " + str(password) if password.exists() else "  User      admin",
        *([] if settings["disable_openapi_docs"] else [f"  API docs  {url}/docs"]),
        f"  Logs      {settings['log_dir']}",
        f"  Workers   gpustack start --server-url {shlex.quote(url)} --token-file TOKEN, a copy of {data_dir / 'token'}",
        "",
        f"Next, in another terminal:  {command} catalog   (then: {command} deploy NAME, or a MODEL.gguf of yours)",
    ]
    return "\n".join(lines)


def worker_ready(settings: dict[str, Any], door: tuple[str, int], seconds: float) -> str:
    """Return what is said when a worker of another server is ready; ``door`` is where it listens."""
    lines = [
        f"GPUStack {__version__} is ready after {seconds:.1f} s: a worker of {settings['server_url']}.",
        "",
        f"  Door      {door[0]}:{door[1]} (the server must reach it)",
        f"  Logs      {settings['log_dir']}",
        "",
        "Next, on the server:  gpustack workers",
    ]
    return "\n".join(lines)


def call(data_dir: Path) -> str:
    """Return how to call this program from another shell."""
    here = Path(sys.executable).with_name("gpustack")
    found = shutil.which("gpustack")
    name = "gpustack" if found and Path(found).resolve() == here.resolve() else str(here)
    words = [name] if data_dir == default_data_dir() else [name, "--data-dir", str(data_dir)]
    return shlex.join(words)
