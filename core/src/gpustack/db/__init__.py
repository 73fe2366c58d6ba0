"""The database: everything GPUStack remembers, and the numbered events that tell what changed.

    async with await Store.open("postgresql://user:secret@host/gpustack") as store:
        await store.migrate()
        async with store.transaction() as tx:
            model = await tx.models.create(wanted, cluster_id=1)
            await tx.instances.create(model, "tiny-1")
        page = await store.models.list(search="tiny", sort_by="-created_at")

Writes that belong together share a transaction; the repositories on the store itself open one for each single
write. Errors are those of :mod:`gpustack.kit.errors`: NotFound, Conflict, InvalidInput, Unavailable, NewerData.

The names load on first use, so that :mod:`gpustack.db.embedded` costs the supervisor no database library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpustack.db.feed import Feed, Subscription
    from gpustack.db.outbox import StoredEvent
    from gpustack.db.repositories.api_keys import KeyRow
    from gpustack.db.repositories.models import spec_digest
    from gpustack.db.repositories.sessions import SessionRow
    from gpustack.db.repositories.users import UserRow
    from gpustack.db.repositories.workers import Door
    from gpustack.db.store import Store, Transaction

_HOMES = {
    "Door": "gpustack.db.repositories.workers",
    "Feed": "gpustack.db.feed",
    "KeyRow": "gpustack.db.repositories.api_keys",
    "SessionRow": "gpustack.db.repositories.sessions",
    "Store": "gpustack.db.store",
    "StoredEvent": "gpustack.db.outbox",
    "Subscription": "gpustack.db.feed",
    "Transaction": "gpustack.db.store",
    "UserRow": "gpustack.db.repositories.users",
    "spec_digest": "gpustack.db.repositories.models",
}

__all__ = [
    "Door",
    "Feed",
    "KeyRow",
    "SessionRow",
    "Store",
    "StoredEvent",
    "Subscription",
    "Transaction",
    "UserRow",
    "spec_digest",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
