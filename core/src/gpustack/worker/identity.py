"""Who this worker is, kept in its data directory so that it stays the same one."""

from __future__ import annotations

import hashlib
import logging
import platform
import re
import secrets
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from gpustack.kit.errors import GPUStackError
from gpustack.kit.paths import make_dir, write_atomic

log = logging.getLogger(__name__)

#: What the files hold; half of it is somebody else.
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_DOOR_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")
#: The server's matter; it says so when it does not know it.
_CREDENTIAL = re.compile(r"[!-~]{16,256}")


@dataclass(slots=True)
class Identity:
    """The worker's number for good, what proves it to the server, and what the server shows at the worker's port."""

    folder: Path
    worker_uuid: str
    door_token: str = field(repr=False)
    #: The credential that the server gave; empty before the first registration.
    credential: str = field(repr=False)

    @classmethod
    def load(cls, folder: Path) -> Identity:
        """Return the identity kept in ``folder``; made and kept there at the first time."""
        make_dir(folder, what="worker directory", mode=0o700)
        return cls(
            folder,
            worker_uuid=_kept(folder / "worker_uuid", _a_uuid, _UUID),
            door_token=_kept(folder / "door_token", lambda: secrets.token_urlsafe(32), _DOOR_TOKEN),
            credential=_read(folder / "credential", _CREDENTIAL),
        )

    @property
    def home(self) -> str:
        """A digest over the machine and the place of the data directory: a copy of it is at another home."""
        here = "\0".join((_machine(), platform.node(), str(self.folder.resolve())))
        return hashlib.sha256(here.encode("utf-8", "surrogateescape")).hexdigest()

    def keep(self, credential: str) -> None:
        """Take the credential that the server gave, and keep it for the next start. Blocks."""
        if credential != self.credential:
            write_atomic(self.folder / "credential", credential + "\n", mode=0o600)
            self.credential = credential

    def become_another(self) -> None:
        """Be a worker that no server knows yet. Blocks."""
        (self.folder / "credential").unlink(missing_ok=True)
        value = _a_uuid()
        write_atomic(self.folder / "worker_uuid", value + "\n", mode=0o600)
        self.worker_uuid, self.credential = value, ""


def _a_uuid() -> str:
    return str(uuid.uuid4())


def _machine() -> str:
    """Return the number that the system gave this machine; containers often have none, and clones the same one."""
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        try:
            if text := Path(path).read_text(encoding="ascii", errors="replace").strip():
                return text
        except OSError:
            continue
    return ""


def _kept(path: Path, make: Callable[[], str], whole: re.Pattern[str]) -> str:
    if value := _read(path, whole):
        return value
    if path.exists():
        log.warning("%s is damaged; it holds something new now", path)
    value = make()
    write_atomic(path, value + "\n", mode=0o600)
    return value


def _read(path: Path, whole: re.Pattern[str]) -> str:
    """Return what the file holds; empty when there is none, or it is not whole."""
    try:
        value = path.read_text(encoding="ascii", errors="replace").strip()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise GPUStackError(
            f"{path} cannot be read: {error.strerror}; change its owner or remove it"
        ) from error
    return value if whole.fullmatch(value) else ""
