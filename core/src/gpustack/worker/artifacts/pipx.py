"""How pipx is found, called and understood."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from gpustack.worker.artifacts.errors import InstallError
from gpustack.worker.environment import PACKAGES, clean_environment

#: Where pip looks for its settings on its own; uv does not read these.
_PIP_FILES = (
    "/etc/pip.conf",
    "~/.pip/pip.conf",
    "~/.config/pip/pip.conf",
    "~/Library/Application Support/pip/pip.conf",
)
_PIP_INDEX = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX", "PIP_CONFIG_FILE")
_UV_INDEX = (
    "UV_DEFAULT_INDEX",
    "UV_INDEX_URL",
    "UV_INDEX",
    "UV_EXTRA_INDEX_URL",
    "UV_FIND_LINKS",
    "UV_CONFIG_FILE",
)

_NO_NETWORK = re.compile(
    r"Failed to establish a new connection|NewConnectionError|ConnectTimeout|Connection refused|Connection reset"
    r"|Name or service not known|Temporary failure in name resolution|getaddrinfo failed|Network is unreachable"
    r"|ReadTimeout|Read timed out|ProxyError|dns error|tcp connect error|operation timed out|Failed to fetch",
    re.IGNORECASE,
)
_NO_VERSION = re.compile(r"No matching distribution found for (\S+)|there is no version of (\S+?)(?=\s)")
_NOT_IN_INDEX = re.compile(r"Because (\S+) was not found in the package registry")
_NO_WHEEL = re.compile(
    r"has no wheels with a matching|requires a different Python|requires Python|not a supported wheel"
)
_NO_SPACE = re.compile(r"No space left on device")
_NO_RIGHT = re.compile(r"Permission denied(?:: '?([^'\n]+)'?)?")
_ERROR_LINE = re.compile(r"^\s*(?:error|ERROR)[: ]\s*(.+)$", re.MULTILINE)


def find_pipx(pipx_path: str, environ: Mapping[str, str]) -> list[str]:
    """Return the command that is pipx: the configured one, ours, or the first on PATH.

    Raises InstallError, with ``--pipx-path`` in its line, when there is none.
    """
    if pipx_path:
        found = shutil.which(pipx_path, path=environ.get("PATH"))
        if found is None:
            raise InstallError(f"--pipx-path: {pipx_path} is not an executable file; name the pipx to use")
        return [str(Path(found).absolute())]
    if importlib.util.find_spec("pipx") is not None:
        # -P: a file named like a module in the working directory must not be taken for it.
        return [sys.executable, "-P", "-m", "pipx"]
    found = shutil.which("pipx", path=environ.get("PATH"))
    if found is None:
        raise InstallError(
            "pipx is not here, and engines are installed with it; install pipx or name it with --pipx-path"
        )
    return [found]


def pipx_environment(environ: Mapping[str, str], *, home: Path, bin_dir: Path) -> dict[str, str]:
    """Return the variables for pipx: everything it makes goes below ``home`` and ``bin_dir``."""
    env = {
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_INPUT": "1",
        "UV_PYTHON_DOWNLOADS": "never",
        # Refreshing pip itself needs the network even when the engine's files are all here.
        "PIPX_DISABLE_SHARED_LIBS_AUTO_UPGRADE": "1",
    }
    if "PIPX_DEFAULT_BACKEND" not in environ and _only_pip_knows_the_index(environ):
        env["PIPX_DEFAULT_BACKEND"] = "pip"
    env |= clean_environment(PACKAGES, environ)
    return env | {
        "PIPX_HOME": str(home),
        "PIPX_BIN_DIR": str(bin_dir),
        "PIPX_MAN_DIR": str(home / "man"),
        "PIPX_COMPLETION_DIR": str(home / "completions"),
        "PIPX_SHARED_LIBS": str(home / "shared"),
        "PIPX_USE_EMOJI": "0",
        "NO_COLOR": "1",
        "UV_NO_PROGRESS": "1",
        "PYTHONUNBUFFERED": "1",
    }


def _only_pip_knows_the_index(environ: Mapping[str, str]) -> bool:
    """Tell whether the user's index is configured for pip alone; pipx would rather take uv, which is faster."""
    if any(environ.get(name) for name in _UV_INDEX):
        return False
    if any(environ.get(name) for name in _PIP_INDEX):
        return True
    home = environ.get("HOME", "")
    places = [Path(place.replace("~", home, 1)) for place in _PIP_FILES if home or not place.startswith("~")]
    if "XDG_CONFIG_HOME" in environ:
        places.append(Path(environ["XDG_CONFIG_HOME"], "pip", "pip.conf"))
    if "APPDATA" in environ:
        places.append(Path(environ["APPDATA"], "pip", "pip.ini"))
    return any(os.access(place, os.R_OK) for place in places)


def explain_failure(output: str) -> tuple[str, bool]:
    """Return what ``output`` of a failed pipx says in a few words, and whether another attempt may succeed.

    The order matters: without a network, pip also says that no version exists.
    """
    if _NO_SPACE.search(output):
        return "the disk is full", True
    if _NO_NETWORK.search(output):
        return (
            "the package index cannot be reached; check the network, the proxy, or the index set for pip or uv",
            True,
        )
    if "(from versions: none)" in output:
        return "the package index cannot be reached, or has nothing of that name", True
    if found := _NO_VERSION.search(output):
        return f"the package index has no {found[1] or found[2]} for this machine and Python", False
    if found := _NOT_IN_INDEX.search(output):
        return f"the package index does not have {found[1]}", False
    if _NO_WHEEL.search(output):
        return "there is no build of it for this machine and Python", False
    if found := _NO_RIGHT.search(output):
        return f"permission denied: {found[1]}" if found[1] else "permission denied", True
    errors = _ERROR_LINE.findall(output)
    lines = [line for line in output.splitlines() if line.strip()]
    return (errors or lines or ["it said nothing"])[-1].strip()[:300], True
