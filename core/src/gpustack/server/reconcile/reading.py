"""All rows that decisions are made from, read at once."""

from __future__ import annotations

from gpustack.db import Store
from gpustack.server.reconcile.notes import Rows


async def read_rows(store: Store) -> Rows:
    """Return the rows as they are in the database now. Raises GPUStackError when it is away."""
    models = await store.models.list(page=-1)
    workers = await store.workers.list(page=-1)
    files = await store.model_files.list(page=-1)
    instances = await store.instances.list(page=-1)
    return Rows(
        models=models.items,
        instances=instances.items,
        workers=workers.items,
        files=files.items,
        backends=(await store.inference_backends.list(page=-1)).items,
        peaks=await store.measured.all(),
    )
