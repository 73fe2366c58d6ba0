"""Backends that people describe in rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from typing import Any

from gpustack.db.connection import Writing
from gpustack.db.dialect import filled
from gpustack.db.errors import conflicts
from gpustack.db.repositories.base import Repository
from gpustack.db.repositories.models import Models
from gpustack.db.tables import InferenceBackend, Model, ModelInstance
from gpustack.kit.errors import Conflict, InvalidInput
from gpustack.schemas.backends import InferenceBackendCreate, InferenceBackendRow, InferenceBackendUpdate
from gpustack.schemas.common import Page
from gpustack.schemas.models import ModelPublic

#: Tells whether a model, whose instances have the versions, could not do without the row.
Uses = Callable[[ModelPublic, Collection[str], InferenceBackendRow], bool]
#: Tells whether a model, whose instances have the versions, runs with the first row and could not with the second.
Breaks = Callable[[ModelPublic, Collection[str], InferenceBackendRow, InferenceBackendRow], bool]
_SHOWN = 10


class InferenceBackends(Repository[InferenceBackendRow]):
    """Rows by the backend's name."""

    table = InferenceBackend
    public = InferenceBackendRow
    noun = "inference backend"
    topic = "inference-backends"
    searched = "backend_name"
    sortable = frozenset({"id", "backend_name", "created_at", "updated_at"})

    async def list(
        self, page: int = 1, per_page: int = 100, *, search: str | None = None, sort_by: str | None = None
    ) -> Page[InferenceBackendRow]:
        """Return one page; ``page`` -1 is everything."""
        return await self._page(page, per_page, search, sort_by, {})

    async def by_name(self, name: str) -> InferenceBackendRow | None:
        """Return the row of the backend; None when there is none."""
        found = await self._find(self._session, InferenceBackend.backend_name == name)
        return found[0] if found else None

    async def create(self, wanted: InferenceBackendCreate) -> InferenceBackendRow:
        """Add a row; Conflict when there is one of that name."""
        name = wanted.backend_name
        line = f"inference backend {name!r} exists already; change it, or remove it with `gpustack backends delete {name}`"
        with conflicts({"inference_backends_backend_name_key": line}):
            async with self._session.writing() as tx:
                return await self._insert(tx, _columns(wanted))

    async def update(
        self, row_id: int, wanted: InferenceBackendUpdate, breaks: Breaks
    ) -> InferenceBackendRow:
        """Replace a description. InvalidInput for another name, Conflict for models that need what it takes away."""
        async with self._session.writing() as tx:
            old = await self._get(tx, row_id, lock=True)
            if wanted.backend_name != old.backend_name:
                raise InvalidInput(
                    f"a backend's name stays: this one is {old.backend_name!r}; describe {wanted.backend_name!r} as a "
                    "new one"
                )
            new = old.model_copy(update={name: getattr(wanted, name) for name in type(wanted).model_fields})
            if users := [each for each, has in await self._models(tx, old) if breaks(each, has, old, new)]:
                raise Conflict(
                    f"backend {old.backend_name} would no longer have what {_names(users)} run with; give them another "
                    "version or remove them first"
                )
            return await self._change(tx, old, _columns(wanted))

    async def delete(self, row_id: int, uses: Uses) -> InferenceBackendRow:
        """Remove a row, and return what it was. Conflict when models need it."""
        async with self._session.writing() as tx:
            old = await self._get(tx, row_id, lock=True)
            if users := [each for each, has in await self._models(tx, old) if uses(each, has, old)]:
                raise Conflict(
                    f"backend {old.backend_name} is in use by {_names(users)}; remove them or give them another backend "
                    "first"
                )
            await self._remove(tx, [old])
            return old

    async def _models(
        self, tx: Writing, row: InferenceBackendRow
    ) -> Iterable[tuple[ModelPublic, Collection[str]]]:
        """Return the models that name the backend, or none and run with it, and the versions of their instances."""
        instance, name = ModelInstance, row.backend_name
        query = instance.select(instance.model_id, instance.backend_version).where(
            (instance.backend == name) & instance.draining_since.is_null()
        )
        versions: defaultdict[int, set[str]] = defaultdict(set)
        for each in await tx.fetch(query):
            versions[each["model_id"]].add(each["backend_version"])
        wanted: Any = Model.backend == name
        if versions:
            wanted |= (Model.backend == "") & Model.id.is_in(filled([*versions]))
        found = await Models(self._session)._find(tx, wanted)
        return [(each, versions.get(each.id, ())) for each in found]


def _names(models: Iterable[ModelPublic]) -> str:
    names = sorted(each.name for each in models)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"model{'s' if len(names) > 1 else ''} {', '.join(names[:_SHOWN])}{more}"


def _columns(wanted: InferenceBackendUpdate) -> dict[str, object]:
    return {name: getattr(wanted, name) for name in InferenceBackendUpdate.model_fields}
