"""Who this worker is, kept in its data directory so that it stays the same one.

The key is what counts: whoever has it is this worker, whatever its host is called and wherever it is reached. A disk
may be copied, though, with all that is on it, so what differs from copy to copy is told as well: the place (``home``),
the start of the system (``boot``), and that of the process (``start``).
"""

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
from gpustack.kit.signing import KEY_TEXT, new_key, public_key, sign
from gpustack.schemas import WorkerProof, WorkerRegistration

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
    #: The private key.
    key: str = field(repr=False)
    #: The credential that the server gave; empty before the first registration.
    credential: str = field(repr=False)
    #: Made up anew in each process.
    start: str = field(default_factory=lambda: secrets.token_hex(16))

    @classmethod
    def load(cls, folder: Path) -> Identity:
        """Return the identity kept in ``folder``; made and kept there at the first time."""
        make_dir(folder, what="worker directory", mode=0o700)
        return cls(
            folder,
            worker_uuid=_kept(folder / "worker_uuid", _a_uuid, _UUID),
            door_token=_kept(folder / "door_token", lambda: secrets.token_urlsafe(32), _DOOR_TOKEN),
            key=_kept(folder / "key", new_key, KEY_TEXT),
            credential=_read(folder / "credential", _CREDENTIAL),
        )

    @property
    def home(self) -> str:
        """A digest over the machine and the place of the data directory: a copy of it is at another home."""
        here = "\0".join((_machine(), platform.node(), str(self.folder.resolve())))
        return hashlib.sha256(here.encode("utf-8", "surrogateescape")).hexdigest()

    @property
    def boot(self) -> str:
        """A digest over the number of this start of the system; empty where it has none."""
        number = _first_line("/proc/sys/kernel/random/boot_id")
        return hashlib.sha256(f"boot {number}".encode()).hexdigest() if number else ""

    def prove(self, registration: WorkerRegistration, challenge: str) -> WorkerRegistration:
        """Return ``registration`` with the proof that it comes from this worker."""
        signature = sign(self.key, registration.signed(challenge))
        proof = WorkerProof(public_key=public_key(self.key), challenge=challenge, signature=signature)
        return registration.model_copy(update={"proof": proof})

    def keep(self, credential: str) -> None:
        """Take the credential that the server gave, and keep it for the next start. Blocks."""
        if credential != self.credential:
            write_atomic(self.folder / "credential", credential + "\n", mode=0o600)
            self.credential = credential

    def become_another(self) -> None:
        """Be a worker that no server knows yet. Blocks."""
        (self.folder / "credential").unlink(missing_ok=True)
        # The key first: with only one of them new, the other still tells this worker from the one it was.
        key, value = new_key(), _a_uuid()
        write_atomic(self.folder / "key", key + "\n", mode=0o600)
        write_atomic(self.folder / "worker_uuid", value + "\n", mode=0o600)
        self.key, self.worker_uuid, self.credential = key, value, ""
        self.start = secrets.token_hex(16)


def _a_uuid() -> str:
    return str(uuid.uuid4())


def _machine() -> str:
    """Return the number that the system gave this machine; containers often have none, and clones the same one."""
    return _first_line("/etc/machine-id") or _first_line("/var/lib/dbus/machine-id")


def _first_line(path: str) -> str:
    """Return what a file of the system says; empty where there is none."""
    try:
        return Path(path).read_text(encoding="ascii", errors="replace").strip()
    except OSError:
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
