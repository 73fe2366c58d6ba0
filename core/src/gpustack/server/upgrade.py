"""Starting over the data of an earlier version: first a backup, then the migration, or nothing at all."""

from __future__ import annotations

import logging
from pathlib import Path

from gpustack.db import Store
from gpustack.db.backup import automatic, discard_staged
from gpustack.kit.errors import GPUStackError, NewerData, SettingsError
from gpustack.kit.logs import TELL

log = logging.getLogger(__name__)


async def migrate(store: Store, data_dir: Path) -> None:
    """Bring the database up to this version; what holds data already is backed up before anything changes.

    Raises NewerData when a newer version wrote it, and GPUStackError, with the place of the backup, when it cannot
    be brought up. It is left as it was then.
    """
    discard_staged(data_dir)
    missing = await store.missing_steps()
    if not missing.names:
        return
    if missing.fresh:
        await store.migrate()
        return
    backup = await automatic(store, data_dir, "before-upgrade")
    log.warning("an earlier version wrote %s; its backup is %s", store.where, backup, extra=TELL)
    try:
        await store.migrate()
    except (NewerData, SettingsError):
        raise
    except GPUStackError as error:
        raise GPUStackError(
            f"the upgrade of {store.where} failed ({error.message}); it is as it was before, and its backup is "
            f"{backup}; install the version that was used before, or report this"
        ) from error
    log.warning("%s was brought up: %s", store.where, ", ".join(missing.names), extra=TELL)
