"""How pipx is found, called and understood."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from gpustack.kit.process import describe_exit
from gpustack.worker.artifacts.errors import InstallError
from gpustack.worker.artifacts.pip_settings import for_pip, for_uv
from gpustack.worker.environment import PACKAGES, clean_environment

_NO_NETWORK = re.compile(
    r"Failed to establish a new connection|NewConnectionError|ConnectTimeout|Connection refused|Connection reset"
    r"|Name or service not known|Temporary failure in name resolution|getaddrinfo failed|Network is unreachable"
    r"|ReadTimeout|Read timed out|ProxyError|dns error|tcp connect error|operation timed out|Failed to fetch",
    re.IGNORECASE,
)
_NOTHING = re.compile(r"(\S+)(?: \(from [^)]*\))? \(from versions: none\)")
_NO_VERSION = re.compile(r"No matching distribution found for (\S+)|there is no version of (\S+?)(?=\s)")
_NOT_IN_INDEX = re.compile(
    r"Because (\S+) was not found in the (?:package registry|provided package locations)"
)
_OTHER_HASH = re.compile(r"THESE PACKAGES DO NOT MATCH THE HASHES|Hash mismatch for", re.IGNORECASE)
_CONTRADICTION = re.compile(
    r"have conflicting dependencies|ResolutionImpossible|requirements are unsatisfiable|we can conclude that"
)
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


def takes_uv(environ: Mapping[str, str], pipx_path: str) -> bool:
    """Tell whether pipx is to install with uv, which is much faster than pip: where uv is, unless the user says no."""
    if (wanted := environ.get("PIPX_DEFAULT_BACKEND", "")) in ("pip", "uv"):
        return wanted == "uv"
    if shutil.which("uv", path=environ.get("PATH", "")) is not None:
        return True
    # Its own pipx, which is beside us, finds the uv of its environment.
    return not pipx_path and importlib.util.find_spec("uv") is not None


def pipx_environment(
    environ: Mapping[str, str], *, home: Path, bin_dir: Path, uv: bool = False
) -> dict[str, str]:
    """Return the variables for pipx: everything it makes goes below ``home`` and ``bin_dir``.

    What is set for pip holds for ``uv`` too, and the other way round.
    """
    env = {
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_INPUT": "1",
        "UV_PYTHON_DOWNLOADS": "never",
        # Refreshing pip itself needs the network even when the engine's files are all here.
        "PIPX_DISABLE_SHARED_LIBS_AUTO_UPGRADE": "1",
    }
    env |= clean_environment(PACKAGES, environ)
    env |= for_uv(environ) if uv else for_pip(environ)
    return env | {
        # Said, and not left to pipx: what it is called with depends on it.
        "PIPX_DEFAULT_BACKEND": "uv" if uv else "pip",
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


def explain_failure(output: str, status: int | None = None) -> tuple[str, bool]:
    """Return what ``output`` of a failed pipx says in a few words, and whether another attempt may succeed.

    Where it says nothing, its ``status`` does, if that is known.

    The order matters: without a network, pip also says that no version exists.
    """
    if _NO_SPACE.search(output):
        return "the disk is full", True
    if _OTHER_HASH.search(output):
        return "a file is not the one that the lock of this version names (its hash is another)", False
    if _NO_NETWORK.search(output):
        return (
            "the package index cannot be reached; check the network, the proxy, or the index set for pip or uv",
            True,
        )
    if found := _NOTHING.search(output):
        return f"the package index cannot be reached, or has no {found[1]}", True
    if found := _NO_VERSION.search(output):
        return f"the package index has no {found[1] or found[2]} for this machine and Python", False
    if found := _NOT_IN_INDEX.search(output):
        return f"the package index does not have {found[1]}", False
    if _NO_WHEEL.search(output):
        return "there is no build of it for this machine and Python", False
    if _CONTRADICTION.search(output):
        return "the packages that it needs contradict each other, or the extra ones do", False
    if found := _NO_RIGHT.search(output):
        return f"permission denied: {found[1]}" if found[1] else "permission denied", True
    errors = _ERROR_LINE.findall(output)
    lines = [line for line in output.splitlines() if line.strip()]
    if not lines and status is not None:
        return f"pipx {describe_exit(status)} and said nothing; check --pipx-path", True
    return (errors or lines or ["it said nothing"])[-1].strip()[:300], True
