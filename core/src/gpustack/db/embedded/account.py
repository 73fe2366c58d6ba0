"""Whose PostgreSQL it is. It refuses to run as root, so root gives it to a user without rights."""

from __future__ import annotations

import asyncio
import os
import pwd
import stat
from dataclasses import dataclass
from pathlib import Path

from gpustack.kit.errors import GPUStackError

#: Tried in this order when root names no user: the one distributions make for PostgreSQL, and the one of nobody.
USUAL_NAMES = ("postgres", "nobody")


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A user of the system that PostgreSQL runs as instead of us."""

    name: str
    uid: int
    gid: int


def choose(data: Path, *, named: str | None = None) -> Account | None:
    """Return the user for the cluster in ``data``, or None when it is to run as the user we are.

    Only root can give it to another: to ``named``, else to the owner of the existing files, else to one of
    ``USUAL_NAMES``. Raises GPUStackError when there is no such user, or the files belong to somebody else.
    """
    owner = data.stat().st_uid if data.exists() else None
    if os.geteuid() != 0:
        if owner not in {None, os.geteuid()}:
            raise GPUStackError(
                f"database directory {data} belongs to user {_name(owner)}; start as that user (or as root), "
                "or name another data directory"
            )
        return None
    if named is not None:
        return _by_name(named)
    if owner:
        return _by_uid(owner)
    for name in USUAL_NAMES:
        try:
            return _by_name(name)
        except GPUStackError:
            continue
    raise GPUStackError(
        "PostgreSQL does not run as root, and the system has neither a user postgres nor nobody; create one, "
        "or name a database with --database-url"
    )


def _by_name(name: str) -> Account:
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise GPUStackError(f"PostgreSQL is to run as user {name}, who does not exist") from None
    if entry.pw_uid == 0:
        raise GPUStackError(f"PostgreSQL does not run as root, which user {name} is; name another user")
    return Account(name=name, uid=entry.pw_uid, gid=entry.pw_gid)


def _by_uid(uid: int) -> Account:
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        raise GPUStackError(
            f"the database files belong to user number {uid}, who does not exist any more; give them to another "
            "with chown -R"
        ) from None
    return Account(name=entry.pw_name, uid=uid, gid=entry.pw_gid)


def _name(uid: int | None) -> str:
    try:
        return pwd.getpwuid(uid or 0).pw_name
    except KeyError:
        return str(uid)


def own(path: Path, account: Account) -> None:
    """Give ``path`` and everything in it to ``account``; quick when the top belongs to it already."""
    if path.stat().st_uid == account.uid:
        return
    for folder, _, files in os.walk(path, topdown=False):
        for name in files:
            os.chown(Path(folder, name), account.uid, account.gid, follow_symlinks=False)
        os.chown(folder, account.uid, account.gid)  # the top comes last, so an interrupted walk is done again


async def check_reachable(folder: Path, account: Account) -> None:
    """Raise GPUStackError naming the first parent of ``folder`` that ``account`` cannot pass through."""
    barrier = next(
        (each for each in reversed([folder, *folder.parents]) if not _passable(each, account)), None
    )
    if barrier is None:
        return
    # Access control lists may allow what the mode does not show, so ask the system before refusing.
    shell = await asyncio.create_subprocess_exec(
        "/bin/sh", "-c", 'cd "$1"', "sh", str(folder),
        user=account.uid, group=account.gid, extra_groups=[], stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    if await shell.wait() != 0:
        raise GPUStackError(
            f"PostgreSQL runs as user {account.name}, who cannot enter {barrier} (it lacks the execute bit for "
            f"others); run `chmod o+x '{barrier}'`, or name a data directory elsewhere"
        )


def _passable(folder: Path, account: Account) -> bool:
    status = folder.stat()
    if status.st_uid == account.uid:
        return bool(status.st_mode & stat.S_IXUSR)
    if status.st_gid == account.gid:
        return bool(status.st_mode & stat.S_IXGRP)
    return bool(status.st_mode & stat.S_IXOTH)
