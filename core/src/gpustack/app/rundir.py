"""What lies in the data directory while GPUStack runs, and who may use that directory."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
from pathlib import Path
from typing import Any

from gpustack import __version__
from gpustack.app.banner import say
from gpustack.kit.errors import Conflict, GPUStackError, NewerData
from gpustack.kit.locks import FileLock
from gpustack.kit.paths import make_dir, place, sweep, write_atomic

#: The folders below the data directory in which files are replaced as a whole.
_WRITTEN = (".", "run", "run/instances", "run/memories", "run/doors", "worker", "postgresql")
_VERSION = re.compile(r"\d+(\.\d+)*([.+-]?[A-Za-z][A-Za-z0-9.+-]*)?")


class RunDir:
    """The data directory, held by this process alone from :meth:`claim` to :meth:`release`."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.path = data_dir / "run"
        self._state = self.path / "supervisor.json"
        self._token = self.path / "cli_token"
        self._lock = FileLock(data_dir / "gpustack.lock")
        #: The command line's credential, to be written anew when somebody removes the folder.
        self._secret = ""
        self._unwritten = False

    def claim(self, lock: int | None = None) -> None:
        """Make the directory ours; raises one line when it cannot be, is in use, or holds newer data.

        ``lock`` is the descriptor that holds it already, in the name of the program that this one replaced.
        """
        if lock is not None:
            self._lock.take_up(lock)
            self._note_version()
            with contextlib.suppress(OSError):
                self._secret = self._token.read_text(encoding="ascii")
            return
        make_dir(self.data_dir, what="data directory")
        try:
            free = self._lock.acquire()
        except OSError as error:
            raise GPUStackError(
                f"{self._lock.path} cannot be opened: {error.strerror}; change its owner or remove it"
            ) from error
        if not free:
            raise Conflict(
                f"data directory {self.data_dir} is in use by process {self._lock.holder()}; "
                "`gpustack status` shows it, `gpustack stop` ends it, --data-dir names another directory"
            )
        try:
            self._open()
        except BaseException:
            self._lock.release()
            raise

    def _open(self) -> None:
        self._note_version()
        make_dir(self.path, what="directory", mode=0o700)
        for folder in _WRITTEN:
            sweep(self.data_dir / folder)
        self._forget_copies()
        self._secret = secrets.token_hex(32)
        write_atomic(self._token, self._secret, mode=0o600)

    def _forget_copies(self) -> None:
        """Remove records that were copied with the data of another GPUStack, whose processes they tell of."""
        found = [*self.path.glob("instances/*.json"), *self.path.glob("doors/*.json")]
        copies = [path for path in found if _place_in(path) not in ("", place(self.data_dir))]
        for path in copies:
            with contextlib.suppress(OSError):
                path.unlink()
        if copies:
            say(f"{self.path} was copied from another place: engines and doors that run there are left alone")

    def hand_down(self) -> int:
        """Return the descriptor that holds the directory, for a program that replaces this one."""
        return self._lock.hand_down()

    def _note_version(self) -> None:
        refuse_newer(self.data_dir)
        file = self.data_dir / "version"
        if _present(file) != __version__:
            write_atomic(file, __version__ + "\n")

    def publish(self, state: dict[str, Any]) -> None:
        """Write down what runs, for ``gpustack status`` and the other commands on this machine.

        What runs is worth more than its description: where that cannot be written, an older one stays.
        """
        try:
            if not self.path.exists():
                make_dir(self.path, what="directory", mode=0o700)
                write_atomic(self._token, self._secret, mode=0o600)
            write_atomic(self._state, json.dumps(state | {"place": place(self.data_dir)}), mode=0o600)
        except (OSError, GPUStackError) as error:
            if not self._unwritten:
                say(
                    f"{self._state} cannot be written ({_reason(error)}); `gpustack status` shows older facts"
                )
            self._unwritten = True
        else:
            self._unwritten = False

    def release(self) -> None:
        """Take away what says that we run."""
        for path in (self._state, self._token):
            with contextlib.suppress(OSError):
                path.unlink()
        self._lock.release()


def _reason(error: OSError | GPUStackError) -> str:
    return error.message if isinstance(error, GPUStackError) else str(error.strerror)


def _place_in(path: Path) -> str:
    """Return the place that a record names, "" when it names none that can be read."""
    try:
        return str(json.loads(path.read_text(encoding="utf-8")).get("place", ""))
    except (OSError, ValueError, AttributeError):
        return ""


def refuse_newer(data_dir: Path) -> None:
    """Raise NewerData when a newer GPUStack has used that data directory."""
    present = _present(data_dir / "version")
    if _release(present) > _release(__version__):
        raise NewerData(
            f"data directory {data_dir} was used by GPUStack {present}, which is newer than this one "
            f"({__version__}); install {present} or later, or name another --data-dir"
        )


def _present(file: Path) -> str:
    """Return the version in ``file``, "" when it holds none: an interrupted write is no reason to stay away."""
    try:
        text = file.read_text(encoding="ascii", errors="replace").strip()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise GPUStackError(
            f"{file} cannot be read: {error.strerror}; change its owner or remove it"
        ) from error
    return text if _VERSION.fullmatch(text) else ""


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
