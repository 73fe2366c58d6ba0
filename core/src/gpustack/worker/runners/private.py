"""A folder of an engine's own outside its data directory, as sockets need short paths: nobody else's, and gone with it."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import stat
from pathlib import Path

from gpustack.kit.errors import system_line
from gpustack.kit.limits import user_id

log = logging.getLogger(__name__)

#: How the names of all such folders begin: nothing else is ever removed.
PREFIX = "gpustack-"


def make_private(path: str) -> None:
    """Make the folder, for us alone; no path, no folder. Raises OSError, also when another user has made it before."""
    if not path:
        return
    try:
        Path(path).mkdir(mode=0o700)
    except FileExistsError:
        if not _is_ours(path):
            raise OSError(errno.EEXIST, "somebody else has made this folder; remove it", path) from None


def remove_private(path: str) -> None:
    """Remove the folder with all that is in it; there need not be one, and what is not ours stays."""
    try:
        if path and _is_ours(path):
            shutil.rmtree(path)
    except FileNotFoundError:
        pass
    except OSError as error:  # what ran in it has ended
        log.warning("%s", system_line(error))


def _is_ours(path: str) -> bool:
    status = os.lstat(path)
    named = Path(path).name.startswith(PREFIX)
    alone = not stat.S_IMODE(status.st_mode) & 0o077
    return stat.S_ISDIR(status.st_mode) and status.st_uid == user_id() and alone and named
