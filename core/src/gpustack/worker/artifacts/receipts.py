"""The note beside an installed engine that says that it was proven, and what it looked like then."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from gpustack.kit.paths import write_atomic


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """One proven installation. Times are nanoseconds, as the file system has them."""

    backend: str
    version: str
    #: SHA-256 of the wheel that GPUStack supplied; empty when an index did.
    wheel: str
    #: The file behind the link, its size and time of change.
    target: str
    size: int
    changed: int
    #: When its own ``--version`` succeeded, in UTC.
    verified: str

    @classmethod
    def of(cls, link: Path, *, backend: str, version: str, wheel: str) -> Self:
        """Describe what ``link`` leads to now. Raises OSError when it leads nowhere."""
        target = link.resolve(strict=True)
        seen = target.stat()
        return cls(
            backend=backend,
            version=version,
            wheel=wheel,
            target=str(target),
            size=seen.st_size,
            changed=seen.st_mtime_ns,
            verified=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def holds(self, link: Path) -> bool:
        """Tell whether ``link`` still leads to the very file that was proven, and its Python is there."""
        try:
            target = link.resolve(strict=True)
            seen = target.stat()
        except OSError:
            return False
        same = (str(target), seen.st_size, seen.st_mtime_ns) == (self.target, self.size, self.changed)
        return same and _interpreter_exists(target)


def write_receipt(link: Path, receipt: Receipt) -> None:
    """Put the receipt beside the link."""
    write_atomic(_beside(link), json.dumps(asdict(receipt), indent=1) + "\n")


def read_receipt(link: Path) -> Receipt | None:
    """Return the receipt beside ``link``, or None when there is no readable one."""
    return _read(_beside(link))


def remove_receipt(link: Path) -> None:
    """Remove the receipt beside the link; there need not be one."""
    _beside(link).unlink(missing_ok=True)


def proven(folder: Path) -> Iterator[Receipt]:
    """Return the receipts in ``folder`` that still hold."""
    for path in sorted(folder.glob("*.json")):
        receipt = _read(path)
        if receipt is not None and receipt.holds(path.with_name(path.name.removesuffix(".json"))):
            yield receipt


def _beside(link: Path) -> Path:
    return link.with_name(f"{link.name}.json")


def _read(path: Path) -> Receipt | None:
    try:
        return Receipt(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _interpreter_exists(target: Path) -> bool:
    """Tell whether the Python environment around ``target`` still has its Python; true outside of one.

    A system that got another Python leaves environments whose interpreter leads nowhere.
    """
    if not (target.parent.parent / "pyvenv.cfg").exists():
        return True
    return any((target.parent / name).exists() for name in ("python", "python.exe"))
