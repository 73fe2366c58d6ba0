"""Whether an engine that was installed works: it is run, and what it needs is imported, before anything relies on it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from gpustack.plugin import PipxPackage
from gpustack.worker.artifacts.child import run_child
from gpustack.worker.artifacts.folders import MARKER
from gpustack.worker.environment import DEVICES, clean_environment

#: Imports each module in turn, and says which one it was that failed.
_IMPORT = """\
import importlib, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except BaseException as error:
        print(f"importing {name} failed: {type(error).__name__}: {error}".splitlines()[0], flush=True)
        sys.exit(1)
"""


async def trouble_of(
    package: PipxPackage,
    link: Path,
    *,
    environ: Mapping[str, str],
    cwd: Path,
    output: Path,
    timeout: float,
    mark: str = "",
) -> str | None:
    """Return None when the engine behind ``link`` works, else why not in a clause; its words are added to ``output``.

    ``mark`` is for its environment, so that who comes after a crash finds it. No access to an index is in there.

    It has to end ``package.verify`` with status 0 within ``timeout`` seconds and name its version, and each of
    ``package.imports`` has to import in its environment, within ``timeout`` seconds too.
    """
    env = clean_environment(DEVICES, environ) | ({MARKER: mark} if mark else {})
    status, said = await _run([str(link), *package.verify], env, cwd, output, timeout)
    question = " ".join(package.verify)
    if status is None:
        return said or f"it did not answer {question} within {timeout:.0f} s"
    if status != 0:
        return f"{question} ended with status {status}: {_last(said)}"
    if not names(said, package.version):
        return f"{question} does not name version {package.version}"
    if not package.imports:
        return None
    python = _python(link)
    if python is None:
        return f"it has to import {', '.join(package.imports)}, and lies in no Python environment"
    status, said = await _run([str(python), "-P", "-c", _IMPORT, *package.imports], env, cwd, output, timeout)
    if status is None:
        return said or f"importing {', '.join(package.imports)} took more than {timeout:.0f} s"
    return None if status == 0 else _last(said)


def names(said: str, version: str) -> bool:
    """Tell whether ``version`` is among what a program ``said`` of itself, and not as a part of another one."""
    return re.search(rf"(?<!\d)(?<!\d\.){re.escape(version)}(?![0-9A-Za-z]|\.\w)", said) is not None


async def _run(
    command: list[str], env: Mapping[str, str], cwd: Path, output: Path, timeout: float
) -> tuple[int | None, str]:
    """Return the status and what was said; no status when it was cut off, or could not be started, which is said."""
    before = _size(output)
    try:
        status = await run_child(command, env=env, cwd=cwd, output=output, timeout=timeout)
    except TimeoutError:
        return None, ""
    except OSError as error:
        return None, f"it cannot be started: {error.strerror}"
    return status, _said_since(output, before)


def _size(output: Path) -> int:
    return output.stat().st_size


def _said_since(output: Path, before: int) -> str:
    with output.open("rb") as file:
        file.seek(before)
        return file.read().decode("utf-8", "replace")


def _python(link: Path) -> Path | None:
    folder = link.resolve().parent
    return next(
        (folder / name for name in ("python", "python.exe") if os.access(folder / name, os.X_OK)), None
    )


def _last(said: str) -> str:
    return (said.strip().splitlines() or ["it said nothing"])[-1].strip()[:300]
