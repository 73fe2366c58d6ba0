"""Who this worker is, kept in its data directory so that it stays the same one."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gpustack.kit.errors import GPUStackError
from gpustack.kit.paths import make_dir, write_atomic


@dataclass(frozen=True, slots=True)
class Identity:
    """The worker's number for good, and what the server shows when it calls the worker's own port."""

    worker_uuid: str
    door_token: str

    @classmethod
    def load(cls, folder: Path) -> Identity:
        """Return the identity kept in ``folder``; made and kept there at the first time."""
        make_dir(folder, what="worker directory", mode=0o700)
        return cls(
            worker_uuid=_kept(folder / "worker_uuid", lambda: str(uuid.uuid4()), lengths=range(8, 65)),
            door_token=_kept(
                folder / "door_token", lambda: secrets.token_urlsafe(32), lengths=range(16, 129)
            ),
        )


def _kept(path: Path, make: Callable[[], str], *, lengths: range) -> str:
    try:
        value = path.read_text(encoding="ascii", errors="replace").strip()
    except FileNotFoundError:
        value = ""
    except OSError as error:
        raise GPUStackError(
            f"{path} cannot be read: {error.strerror}; change its owner or remove it"
        ) from error
    if len(value) in lengths and value.isprintable():
        return value
    value = make()
    write_atomic(path, value + "\n", mode=0o600)
    return value
