"""The cluster of files: made once and completely, protected by a password, of one major version."""

from __future__ import annotations

import logging
import re
import secrets
import shutil
import tempfile
from pathlib import Path

from gpustack.db.embedded.account import Account, own
from gpustack.db.embedded.binaries import Binaries
from gpustack.db.embedded.child import run, single_user
from gpustack.kit.errors import GPUStackError, NewerData
from gpustack.kit.paths import sync_dir, write_atomic

log = logging.getLogger(__name__)

#: The role, which owns everything in the cluster, and the database; the same name as psql would assume.
ROLE = "gpustack"
_STAGING = ".new-cluster-"
_PASSWORD_BYTES = 32
#: As :func:`secrets.token_urlsafe` makes it of that many bytes.
_PASSWORD = re.compile(r"[A-Za-z0-9_-]{43}")


def major_of(data: Path) -> int | None:
    """Return the major version of the cluster in ``data``, or None when there is none yet.

    Raises GPUStackError when something else is there.
    """
    try:
        return int((data / "PG_VERSION").read_text(encoding="ascii"))
    except FileNotFoundError:
        if data.is_dir() and any(data.iterdir()):
            raise GPUStackError(f"{data} holds files but no PostgreSQL cluster; move it away") from None
        return None
    except (OSError, ValueError) as error:
        raise GPUStackError(
            f"{data / 'PG_VERSION'} cannot be read ({error}); restore it from a backup"
        ) from error


def check_version(data: Path, major: int, binaries: Binaries) -> None:
    """Raise one line when the cluster of version ``major`` is not for ``binaries``; NewerData when it is newer."""
    if major == binaries.major:
        return
    message = (
        f"the database in {data} was made by PostgreSQL {major}, and the one at hand is {binaries.version}; "
        f"install PostgreSQL {major}, or name another data directory"
    )
    raise NewerData(message) if major > binaries.major else GPUStackError(message)


async def create(data: Path, password_file: Path, binaries: Binaries, account: Account | None) -> str:
    """Make the cluster ``data`` with its database; return the password, which lies in ``password_file`` then.

    It is made beside its place and renamed when it is complete and on disk, so one that was interrupted is as if
    it had never been begun. Raises GPUStackError with the reason of PostgreSQL when that fails.
    """
    discard_unfinished(data.parent)
    staging = Path(tempfile.mkdtemp(prefix=_STAGING, dir=data.parent))
    try:
        password = secrets.token_urlsafe(_PASSWORD_BYTES)
        write_atomic(staging / "password", password + "\n", mode=0o600)
        if account is not None:
            own(staging, account)
        await _initialise(staging, binaries, account)
        # Before the rename: a cluster in its place always has its password.
        write_atomic(password_file, password + "\n", mode=0o600)
        (staging / "data").rename(data)
        sync_dir(data.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return password


def discard_unfinished(folder: Path) -> None:
    """Remove what an interrupted :func:`create` left behind."""
    for left in folder.glob(f"{_STAGING}*"):
        shutil.rmtree(left, ignore_errors=True)


async def _initialise(staging: Path, binaries: Binaries, account: Account | None) -> None:
    data, initdb = staging / "data", str(binaries.bin_dir / "initdb")
    # Written to disk once, at the end: --no-sync here, -F below, --sync-only last.
    made = await run(
        [
            *(initdb, "-D", str(data), "-U", ROLE, f"--pwfile={staging / 'password'}"),
            *("--auth-host=scram-sha-256", "--auth-local=scram-sha-256"),
            *("--encoding=UTF8", "--locale=C", "--no-sync"),
        ],
        account,
    )
    why = made.reason if made.status != 0 else ""
    strategy = (
        " STRATEGY file_copy" if binaries.major >= 15 else ""
    )  # half the time, nothing in the log twice
    sql = f"CREATE DATABASE {ROLE}{strategy};"
    why = why or await single_user(binaries.bin_dir, data, account, sql, "-F")
    if not why:
        synced = await run([initdb, "--sync-only", "-D", str(data)], account)
        why = synced.reason if synced.status != 0 else ""
    if why:
        raise GPUStackError(f"the database cannot be created in {data.parent.parent}: {why}")


async def read_password(data: Path, password_file: Path, binaries: Binaries, account: Account | None) -> str:
    """Return the password of an existing cluster; when its file is lost, give the role a new one.

    The cluster must not be running.
    """
    if password := recorded_password(password_file):
        return password
    log.warning("%s is lost or damaged; the database gets a new password", password_file)
    password = secrets.token_urlsafe(_PASSWORD_BYTES)
    why = await single_user(binaries.bin_dir, data, account, f"ALTER ROLE {ROLE} PASSWORD '{password}';")
    if why:
        raise GPUStackError(f"{password_file} is lost, and no new password can be set: {why}")
    write_atomic(password_file, password + "\n", mode=0o600)
    return password


def recorded_password(password_file: Path) -> str:
    """Return the password that lies there, "" when there is none or it is none that we have made."""
    try:
        text = password_file.read_text(encoding="ascii", errors="replace").strip()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise GPUStackError(
            f"{password_file} cannot be read: {error.strerror}; change its owner or remove it"
        ) from error
    return text if _PASSWORD.fullmatch(text) else ""
