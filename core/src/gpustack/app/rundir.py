"""What lies in the data directory while GPUStack runs, and who may use that directory."""

from __future__ import annotations

import json
import re
import secrets
from pathlib import Path
from typing import Any

from gpustack import __version__
from gpustack.kit.errors import Conflict, GPUStackError, NewerData
from gpustack.kit.locks import FileLock
from gpustack.kit.paths import make_dir, write_atomic


class RunDir:
    """The data directory, held by this process alone from :meth:`claim` to :meth:`release`."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.path = data_dir / "run"
        self._state = self.path / "supervisor.json"
        self._token = self.path / "cli_token"
        self._lock = FileLock(data_dir / "gpustack.lock")

    def claim(self) -> None:
        """Make the directory ours; raises one line when it cannot be, is in use, or holds newer data."""
        make_dir(self.data_dir, what="data directory")
        try:
            free = self._lock.acquire()
        except OSError as error:
            raise GPUStackError(
                f"{self._lock.path} cannot be opened: {error.strerror}; change its owner"
            ) from error
        if not free:
            raise Conflict(
                f"data directory {self.data_dir} is in use by process {self._lock.holder()}; "
                "`gpustack status` shows it, `gpustack stop` ends it, --data-dir names another directory"
            )
        _refuse_newer(self.data_dir / "version")
        make_dir(self.path, what="directory", mode=0o700)
        write_atomic(self._token, secrets.token_hex(32), mode=0o600)

    def publish(self, state: dict[str, Any]) -> None:
        """Write down what runs, for ``gpustack status`` and the other commands on this machine."""
        write_atomic(self._state, json.dumps(state), mode=0o600)

    def release(self) -> None:
        """Take away what says that we run."""
        self._state.unlink(missing_ok=True)
        self._token.unlink(missing_ok=True)
        self._lock.release()


def _refuse_newer(file: Path) -> None:
    present = file.read_text(encoding="ascii", errors="replace").strip() if file.exists() else ""
    if _release(present) > _release(__version__):
        raise NewerData(
            f"data directory {file.parent} was used by GPUStack {present}, which is newer than this one "
            f"({__version__}); install {present} or later, or name another --data-dir"
        )
    if present != __version__:
        write_atomic(file, __version__ + "\n")


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
