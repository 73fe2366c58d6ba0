"""Runs the programs that install, each with its whole tree in a session of its own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from gpustack.kit.process import OWN_SESSION, end_tree_async

#: What such a program may know of our environment: who and where it is, and how to reach package indexes.
_KEPT = frozenset(
    (
        *(
            "PATH",
            "HOME",
            "USER",
            "LOGNAME",
            "SHELL",
            "LANG",
            "LANGUAGE",
            "TZ",
            "TMPDIR",
            "TEMP",
            "TMP",
            "NETRC",
        ),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "LD_LIBRARY_PATH"),
        *("SYSTEMROOT", "COMSPEC", "PATHEXT", "APPDATA", "LOCALAPPDATA", "USERPROFILE", "PROGRAMDATA"),
    )
)
_KEPT_FAMILIES = ("PIP_", "PIPX_", "UV_", "XDG_", "LC_")


def child_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables for a child: no secrets of ours, nothing of an active Python environment."""
    return {
        name: value
        for name, value in environ.items()
        if name.upper() in _KEPT or name.startswith(_KEPT_FAMILIES) or name.upper().endswith("_PROXY")
    }


async def run_child(
    command: Sequence[str | os.PathLike[str]],
    *,
    env: Mapping[str, str],
    cwd: Path,
    output: Path,
    timeout: float,
) -> int:
    """Run ``command`` and return its exit status; all it prints is appended to the file ``output``.

    Raises TimeoutError after ``timeout`` seconds, and OSError when it cannot be started. However this ends,
    nothing of it runs any more.
    """
    with output.open("ab") as file:
        process = await asyncio.create_subprocess_exec(
            *command,
            env=dict(env),
            cwd=cwd,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=file,
            stderr=asyncio.subprocess.STDOUT,
            **OWN_SESSION,
        )
    try:
        async with asyncio.timeout(timeout):
            return await process.wait()
    except BaseException:
        # Shielded: a second cancellation must not leave the tree alive.
        await asyncio.shield(_end(process))
        raise


async def _end(process: asyncio.subprocess.Process) -> None:
    await end_tree_async(process.pid, grace=1.0)
    await process.wait()
