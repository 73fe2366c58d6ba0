"""The notes beside an installed engine: that it was proven and what it looked like then, and when it was used last."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from gpustack.kit.paths import write_atomic
from gpustack.worker.artifacts.recipe import Recipe

#: Seconds within which a further use is not noted: starts of engines are to cost no write.
_NOTED = 3600.0


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
    #: What the version and the deployment wanted in the environment besides; :attr:`extras` are the deployment's.
    requirements: list[str] = field(default_factory=list)
    extras: list[str] = field(default_factory=list)
    #: Bytes that the whole environment takes on the disk; 0 was not measured.
    disk: int = 0

    @classmethod
    def of(cls, link: Path, recipe: Recipe, *, disk: int = 0) -> Self:
        """Describe what ``link`` leads to now. Raises OSError when it leads nowhere."""
        target = link.resolve(strict=True)
        seen = target.stat()
        return cls(
            backend=recipe.backend,
            version=recipe.package.version,
            wheel=recipe.wheel_digest,
            target=str(target),
            size=seen.st_size,
            changed=seen.st_mtime_ns,
            verified=datetime.now(UTC).isoformat(timespec="seconds"),
            requirements=list(recipe.requirements),
            extras=list(recipe.extras),
            disk=disk,
        )

    def is_of(self, recipe: Recipe) -> bool:
        """Tell whether it was made from that very recipe. Its lock does not count: it is for those to come."""
        return self.wheel == recipe.wheel_digest and self.requirements == list(recipe.requirements)

    def holds(self, link: Path) -> bool:
        """Tell whether ``link`` still leads to the very file that was proven, and its Python is there."""
        try:
            target = link.resolve(strict=True)
            seen = target.stat()
        except OSError:
            return False
        same = (str(target), seen.st_size, seen.st_mtime_ns) == (self.target, self.size, self.changed)
        return same and _interpreter_exists(target)


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """An environment that is there and was proven."""

    link: Path
    receipt: Receipt
    last_used: datetime

    @property
    def folder(self) -> Path:
        """Its folder: the Python environment, or what came out of an archive."""
        target = Path(self.receipt.target)
        unpacked = releases(self.link.parent).resolve()
        if target.is_relative_to(unpacked):
            return unpacked / target.relative_to(unpacked).parts[0]
        return target.parent.parent


def releases(bin_dir: Path) -> Path:
    """Return where engines lie that came as archives."""
    return bin_dir / "releases"


def write_receipt(link: Path, receipt: Receipt) -> None:
    """Put the receipt beside the link."""
    write_atomic(_beside(link), json.dumps(asdict(receipt), indent=1) + "\n")


def read_receipt(link: Path) -> Receipt | None:
    """Return the receipt beside ``link``, or None when there is no readable one."""
    return _read(_beside(link))


def remove_receipt(link: Path) -> None:
    """Remove what is noted beside the link; there need not be anything."""
    _beside(link).unlink(missing_ok=True)
    _used(link).unlink(missing_ok=True)


def proven(folder: Path) -> Iterator[Receipt]:
    """Return the receipts in ``folder`` that still hold."""
    for held in environments(folder):
        yield held.receipt


def environments(folder: Path) -> Iterator[Held]:
    """Return the environments in ``folder`` that are as they were proven."""
    for path in sorted(folder.glob("*.json")):
        link = path.with_name(path.name.removesuffix(".json"))
        receipt = _read(path)
        if receipt is not None and receipt.holds(link):
            yield Held(link=link, receipt=receipt, last_used=last_used(link, receipt))


def note_use(link: Path, *, every: float = _NOTED) -> None:
    """Remember that the engine is used now; not again within ``every`` seconds, and not where nothing may be written."""
    path = _used(link)
    with contextlib.suppress(OSError):
        try:
            if time.time() - path.stat().st_mtime < every:
                return
        except FileNotFoundError:
            pass
        path.touch()


def last_used(link: Path, receipt: Receipt) -> datetime:
    """Return when it was used last, or proven when it never was."""
    try:
        return datetime.fromtimestamp(_used(link).stat().st_mtime, UTC)
    except (OSError, OverflowError, ValueError):  # it is not there, or of a time that is none
        return datetime.fromisoformat(receipt.verified)


def _beside(link: Path) -> Path:
    return link.with_name(f"{link.name}.json")


def _used(link: Path) -> Path:
    return link.with_name(f"{link.name}.used")


def _read(path: Path) -> Receipt | None:
    try:
        receipt = Receipt(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    return receipt if _is_sound(receipt) else None


def _is_sound(receipt: Receipt) -> bool:
    """Tell whether every value is of its kind: other programs may write into the folder."""
    texts = (receipt.backend, receipt.version, receipt.wheel, receipt.target, receipt.verified)
    lists: tuple[object, ...] = (receipt.requirements, receipt.extras)
    if not all(isinstance(each, str) for each in texts):
        return False
    if (
        not all(type(each) is int for each in (receipt.size, receipt.changed, receipt.disk))
        or receipt.disk < 0
    ):
        return False
    if not all(isinstance(each, list) and all(isinstance(one, str) for one in each) for each in lists):
        return False
    try:
        return datetime.fromisoformat(receipt.verified).tzinfo is not None
    except ValueError:
        return False


def _interpreter_exists(target: Path) -> bool:
    """Tell whether the Python environment around ``target`` still has its Python; true outside of one.

    A system that got another Python leaves environments whose interpreter leads nowhere.
    """
    if not (target.parent.parent / "pyvenv.cfg").exists():
        return True
    return any((target.parent / name).exists() for name in ("python", "python.exe"))
