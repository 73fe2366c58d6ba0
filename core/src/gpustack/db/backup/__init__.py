"""Backups: everything in the database and the small files that belong to it, in one archive.

    async with await Store.open(url) as store:
        done = await backup.write(store, data_dir, Path("gpustack.tar.gz"))
    archive.verify(Path("gpustack.tar.gz"))
    await backup.load(url, data_dir, Path("gpustack.tar.gz"), replace=True)

The format belongs to no database: :mod:`gpustack.db.backup.archive` describes it.
"""

from __future__ import annotations

from gpustack.db.backup.archive import Manifest, verify
from gpustack.db.backup.load import discard_staged, load
from gpustack.db.backup.write import Written, automatic, write

__all__ = ["Manifest", "Written", "automatic", "discard_staged", "load", "verify", "write"]
