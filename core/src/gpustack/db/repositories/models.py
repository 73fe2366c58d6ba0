"""Models."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from gpustack.db.connection import Writing
from gpustack.db.errors import conflicts
from gpustack.db.repositories.base import Repository, json
from gpustack.db.repositories.instances import Instances
from gpustack.db.repositories.model_routes import ModelRoutes
from gpustack.db.tables import Model
from gpustack.kit.errors import Conflict, InvalidInput, NotFound
from gpustack.schemas.common import Page
from gpustack.schemas.models import ModelCreate, ModelPatch, ModelPublic, ModelUpdate, Source

#: What an engine is started with.
_SPEC = ("source", "local_path", "backend", "backend_version", "backend_parameters", "env")
_OWN = ("image_name", "run_command")
_HUB = ("huggingface_repo_id", "huggingface_filename", "huggingface_revision")


def spec_digest(described: ModelCreate | ModelUpdate | ModelPublic) -> str:
    """Return the digest over what an engine of the model is started with, and on which GPUs chosen by hand.

    Equal ones need no other engine.
    """
    spec = {name: getattr(described, name) for name in _SPEC}
    spec["env"] = sorted(described.env.items())
    if described.source is Source.HUGGINGFACE:
        spec |= {name: getattr(described, name) for name in _HUB}
    elif described.source is Source.BUNDLED:
        spec["bundled_name"] = described.bundled_name
    # Left out when empty, so that models from before these fields need no other engine.
    spec |= {name: value for name in _OWN if (value := getattr(described, name))}
    # Not in the digest of models without: those of before stay what they are.
    if described.backend_packages:
        spec["backend_packages"] = sorted(described.backend_packages)
    if (gpus := described.gpu_selector) is not None:
        spec["gpus"] = [sorted(gpus.gpu_ids), gpus.gpus_per_replica]
    return hashlib.sha256(json(spec).encode()).hexdigest()


class Models(Repository[ModelPublic]):
    """What users want served."""

    table = Model
    public = ModelPublic
    noun = "model"
    topic = "models"
    sortable = frozenset(
        {
            "id",
            "name",
            "created_at",
            "updated_at",
            "replicas",
            "ready_replicas",
            "backend",
            "source",
            "cluster_id",
            "priority",
        }
    )

    async def list(
        self,
        page: int = 1,
        per_page: int = 100,
        *,
        search: str | None = None,
        sort_by: str | None = None,
        cluster_id: int | None = None,
        backend: str | None = None,
    ) -> Page[ModelPublic]:
        """Return one page; ``page`` -1 is everything."""
        filters = {"cluster_id": cluster_id, "backend": backend}
        return await self._page(page, per_page, search, sort_by, filters)

    async def by_name(self, name: str) -> ModelPublic:
        """Return the model of this name; NotFound when there is none."""
        found = await self._find(self._session, Model.name == name)
        if not found:
            raise NotFound(f"there is no model named {name!r}")
        return found[0]

    async def create(self, wanted: ModelCreate, cluster_id: int) -> ModelPublic:
        """Add a model, with a route of its name unless that is not wanted.

        Conflict when the name is taken, by a model or by a route to others; NotFound when the cluster does not exist.
        """
        values = {**_columns(wanted), "cluster_id": cluster_id, "ready_replicas": 0, "categories": []}
        with conflicts(_taken(wanted.name), _no_cluster(cluster_id)):
            async with self._session.writing() as tx:
                model = await self._insert(tx, values)
                await ModelRoutes(tx).model_added(tx, model, own=wanted.enable_model_route)
                return model

    async def update(self, model_id: int, wanted: ModelUpdate) -> ModelPublic:
        """Replace the description; a ``cluster_id`` of None keeps the cluster. InvalidInput for another name."""
        with conflicts({}, _no_cluster(wanted.cluster_id)):
            async with self._session.writing() as tx:
                return await self._describe(tx, await self._get(tx, model_id, lock=True), wanted)

    async def patch(self, model_id: int, changes: ModelPatch) -> ModelPublic:
        """Change what is named and nothing else, whoever else changes the model at the same time.

        Raises ValidationError when the whole would be none, InvalidInput for another name.
        """
        with conflicts({}, _no_cluster(changes.cluster_id)):
            async with self._session.writing() as tx:
                old = await self._get(tx, model_id, lock=True)
                return await self._describe(tx, old, changes.applied_to(old))

    async def _describe(self, tx: Writing, old: ModelPublic, wanted: ModelUpdate) -> ModelPublic:
        """Give the model of ``old``, whose row is locked, another description."""
        values = _columns(wanted)
        name = values.pop("name")
        if name not in (None, old.name):
            raise InvalidInput(
                f"a model's name stays: this one is {old.name!r}; deploy {name!r} as a new model"
            )
        if values["cluster_id"] is None:
            del values["cluster_id"]
        return await self._change(tx, old, values)

    async def set_facts(self, model_id: int, *, categories: Sequence[str]) -> ModelPublic:
        """Store what was read from the files."""
        return await self._set(model_id, {"categories": [*categories]})

    async def set_ready(self, model_id: int, ready: int) -> ModelPublic:
        """Store how many instances answer now."""
        return await self._set(model_id, {"ready_replicas": ready})

    async def scale(self, model_id: int, replicas: int, *, expect: int) -> ModelPublic:
        """Have another number of instances wanted.

        Conflict when it is not ``expect`` any more, or is not for us to change, or not so far; NotFound when it is gone.
        """
        async with self._session.writing() as tx:
            old = await self._get(tx, model_id, lock=True)
            limits = old.scaled_between
            if old.replicas != expect or limits is None or not limits[0] <= replicas <= limits[1]:
                raise Conflict(f"model {old.name!r} was changed meanwhile")
            return await self._change(tx, old, {"replicas": replicas})

    async def delete(self, model_id: int, *, force: bool = False) -> ModelPublic:
        """Remove a model, and return what it was. Its name is free at once, and its own route goes with it.

        Routes that lead elsewhere, too, stay and take the next model of its name.
        Its instances drain, or go at once when they have no worker, or with ``force``.
        """
        async with self._session.writing() as tx:
            model = await self._get(tx, model_id, lock=True)
            seconds = None if force else model.rollout.drain_seconds
            why = f"model {model.name} was removed"
            await Instances(tx).end_all(tx, model_id, seconds=seconds, why=why)
            await ModelRoutes(tx).model_removed(tx, model)
            await self._remove(tx, [model])
            return model

    async def _set(self, model_id: int, values: Mapping[str, Any]) -> ModelPublic:
        async with self._session.writing() as tx:
            return await self._change(tx, await self._get(tx, model_id, lock=True), values)


def _columns(wanted: ModelCreate | ModelUpdate) -> dict[str, Any]:
    fields = type(wanted).model_fields.keys() - {"enable_model_route"}
    values = {name: getattr(wanted, name) for name in fields}
    return {**values, "spec_digest": spec_digest(wanted)}


def _taken(name: str) -> dict[str, str]:
    line = f"a model named {name!r} exists already; choose another name or remove that one with `gpustack rm {name}`"
    return {"models_name_key": line}


def _no_cluster(cluster_id: int | None) -> dict[str, str]:
    return {"models_cluster_id_fkey": f"there is no cluster {cluster_id}"}
