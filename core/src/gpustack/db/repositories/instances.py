"""Model instances."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from gpustack.db.connection import Writing
from gpustack.db.dialect import filled
from gpustack.db.errors import conflicts
from gpustack.db.repositories.base import Repository, now, sql
from gpustack.db.repositories.history import happenings
from gpustack.db.tables import Model, ModelInstance, Worker
from gpustack.kit.errors import Conflict, NotFound
from gpustack.schemas.common import Page
from gpustack.schemas.instances import (
    Claim,
    InstanceMember,
    InstanceMemory,
    InstanceState,
    ModelInstancePublic,
)
from gpustack.schemas.models import ModelPublic, Rollout
from gpustack.schemas.workers import WorkerState

#: Instances that one statement changes: a database takes some ten thousand values at once.
_BATCH = 200

#: What ``update`` may set.
_WRITABLE = frozenset(ModelInstancePublic.model_fields) - {
    "id",
    "name",
    "model_id",
    "model_name",
    "cluster_id",
    "created_at",
    "updated_at",
    "state_since",
    "worker_name",
    "worker_ip",
}


class Instances(Repository[ModelInstancePublic]):
    """Copies of models."""

    table = ModelInstance
    public = ModelInstancePublic
    noun = "model instance"
    topic = "model-instances"
    sortable = frozenset(
        {
            "id",
            "name",
            "created_at",
            "updated_at",
            "state",
            "state_since",
            "model_name",
            "worker_name",
            "restart_count",
        }
    )

    # History ------------------------------------------------------------------------------------------

    async def _insert(self, tx: Writing, values: Mapping[str, Any]) -> ModelInstancePublic:
        created = await super()._insert(tx, values)
        tx.remember(happenings(None, created))
        return created

    async def _change(
        self, tx: Writing, old: ModelInstancePublic, values: Mapping[str, Any]
    ) -> ModelInstancePublic:
        new = await super()._change(tx, old, values)
        tx.remember(happenings(old, new))
        return new

    async def _change_many(
        self, tx: Writing, changes: Sequence[tuple[ModelInstancePublic, Mapping[str, Any]]]
    ) -> Sequence[ModelInstancePublic]:
        changed = await super()._change_many(tx, changes)
        for (old, _), new in zip(changes, changed, strict=True):
            tx.remember(happenings(old, new))
        return changed

    async def _remove(self, tx: Writing, gone: Iterable[ModelInstancePublic]) -> None:
        things = [*gone]
        await super()._remove(tx, things)
        for each in things:
            tx.remember(happenings(each, None))

    # --------------------------------------------------------------------------------------------------

    async def list(
        self,
        page: int = 1,
        per_page: int = 100,
        *,
        search: str | None = None,
        sort_by: str | None = None,
        model_id: int | None = None,
        worker_id: int | None = None,
        cluster_id: int | None = None,
        state: InstanceState | None = None,
    ) -> Page[ModelInstancePublic]:
        """Return one page; ``page`` -1 is everything."""
        filters = {"model_id": model_id, "worker_id": worker_id, "cluster_id": cluster_id, "state": state}
        return await self._page(page, per_page, search, sort_by, filters)

    def _condition(self, name: str, value: Any) -> Any:
        return _on_worker(value) if name == "worker_id" else super()._condition(name, value)

    async def create(self, model: ModelPublic, name: str) -> ModelInstancePublic:
        """Add a PENDING instance; NotFound when the model is gone, Conflict when the name is taken."""
        values = {
            "name": name,
            "model_id": model.id,
            "model_name": model.name,
            "cluster_id": model.cluster_id,
            "state": InstanceState.PENDING,
            "state_message": "",
            "state_since": now(),
            "worker_id": None,
            "worker_name": "",
            "worker_ip": "",
            "pid": None,
            "port": None,
            "ports": [],
            "resolved_path": "",
            "backend": "",
            "backend_version": "",
            "computed_resource_claim": Claim(),
            "memory": InstanceMemory(),
            "gpu_indexes": [],
            "resolved_revision": "",
            "download_progress": 0.0,
            "draining_since": None,
            "drain_seconds": 0,
            "spec_digest": model.spec_digest,
            "restart_count": 0,
            "last_restart_time": None,
            "members": [],
            "attempt": 0,
            "failed_attempts": 0,
        }
        taken = {"model_instances_name_key": f"an instance named {name!r} exists already"}
        gone = {"model_instances_cluster_id_fkey": f"there is no cluster {model.cluster_id}"}
        with conflicts(taken, gone):
            async with self._session.writing() as tx:
                # Locked: whoever deletes the model waits, and then finds this instance.
                if not await tx.fetch(Model.select(Model.id).where(Model.id == model.id).lock_rows()):
                    raise NotFound(f"there is no model {model.id}")
                return await self._insert(tx, values)

    async def update(
        self,
        instance_id: int,
        *,
        expect_state: InstanceState | Collection[InstanceState] | None = None,
        **columns: Any,
    ) -> ModelInstancePublic:
        """Set ``columns``; ``updated_at`` always follows, ``state_since`` when the state changes, and with
        ``worker_id`` the worker's name and address.

        Conflict when the instance is in none of the states of ``expect_state``: the row is locked while that is
        compared, so nobody changes it in between. NotFound when the instance, or the worker it is given, is gone.
        """
        unknown = sorted(columns.keys() - _WRITABLE)
        if unknown:
            raise TypeError(f"an instance has no column {', '.join(unknown)} that could be set")
        async with self._session.writing() as tx:
            if "worker_id" in columns:
                columns |= await _worker(tx, columns["worker_id"])
            if "members" in columns:
                columns["follower_ids"] = _followers(columns["members"])
            old = await self._get(tx, instance_id, lock=True)
            _expect(old, expect_state)
            if "state" in columns and columns["state"] != old.state:
                columns["state_since"] = now()
            return await self._change(tx, old, columns)

    async def schedule(
        self, wanted: Mapping[int, Mapping[str, Any]], *, expect: Mapping[int, InstanceState]
    ) -> Sequence[ModelInstancePublic]:
        """Give instances to workers, all in one transaction, and return those that were given.

        ``wanted`` has the columns by instance, ``worker_id`` among them, the same for each. Left out are instances that
        are gone or in another state than expected, and those whose worker is gone or does not take any now.
        """
        given: list[ModelInstancePublic] = []
        ids = sorted(wanted)
        async with self._session.writing() as tx:
            for start in range(0, len(ids), _BATCH):
                given += await self._schedule(
                    tx, {each: wanted[each] for each in ids[start : start + _BATCH]}, expect
                )
        return given

    async def _schedule(
        self, tx: Writing, wanted: Mapping[int, Mapping[str, Any]], expect: Mapping[int, InstanceState]
    ) -> Sequence[ModelInstancePublic]:
        workers = await _ready_workers(
            tx, {each for columns in wanted.values() for each in _workers_of(columns)}
        )
        changes = []
        moment = now()
        for old in await self._find(tx, ModelInstance.id.is_in(filled([*wanted])), lock=True):
            columns = wanted[old.id]
            if old.state is not expect[old.id] or not workers.keys() >= _workers_of(columns):
                continue
            scheduled = {"state": InstanceState.SCHEDULED, "state_since": moment, "attempt": old.attempt + 1}
            members = [each.model_copy(update=workers[each.worker_id]) for each in columns.get("members", ())]
            group = {"members": members, "follower_ids": _followers(members), "failed_attempts": 0}
            changes.append((old, {**columns, **workers[columns["worker_id"]], **scheduled, **group}))
        return await self._change_many(tx, changes)

    async def follow_worker(self, tx: Writing, worker_id: int, name: str, ip: str) -> None:
        """Give the instances on a worker its new name and address. The caller has locked the worker's row."""
        for old in await self._find(tx, _on_worker(worker_id), lock=True):
            new = {"worker_name": name, "worker_ip": ip}
            columns: dict[str, Any] = new if old.worker_id == worker_id else {}
            if old.members:
                columns = columns | {"members": _with(old.members, worker_id, new)}
            await self._change(tx, old, columns)

    async def drain(
        self,
        instance_id: int,
        *,
        why: str,
        seconds: int | None = None,
        expect_state: InstanceState | None = None,
    ) -> ModelInstancePublic | None:
        """Let an instance take no new requests and end after those in flight; return it, or None: it is gone already.

        One that has no worker is removed at once. ``seconds`` is how long requests in flight have; None asks the
        model. Draining it again changes nothing. Conflict when it is not in ``expect_state``, NotFound when it is gone.
        """
        async with self._session.writing() as tx:
            if seconds is None:
                seconds = await _drain_seconds(tx, instance_id)
            old = await self._get(tx, instance_id, lock=True)
            _expect(old, expect_state)
            return await self._drain(tx, old, seconds, why)

    async def end_all(self, tx: Writing, model_id: int, *, seconds: int | None, why: str) -> None:
        """Drain all instances of a model, or remove them when ``seconds`` is None; each with its own event.

        The caller has locked the model's row.
        """
        found = await self._find(tx, ModelInstance.model_id == model_id, lock=True)
        if seconds is None:
            await self._remove(tx, found)
            return
        for old in found:
            await self._drain(tx, old, seconds, why)

    async def _drain(
        self, tx: Writing, old: ModelInstancePublic, seconds: int, why: str
    ) -> ModelInstancePublic | None:
        if old.worker_id is None:
            await self._remove(tx, [old])
            return None
        if old.draining_since is not None:
            return old
        return await self._change(
            tx, old, {"draining_since": now(), "drain_seconds": seconds, "state_message": why}
        )

    async def delete(self, instance_id: int) -> ModelInstancePublic:
        """Remove an instance and return what it was."""
        async with self._session.writing() as tx:
            instance = await self._get(tx, instance_id, lock=True)
            await self._remove(tx, [instance])
            return instance


async def _drain_seconds(tx: Writing, instance_id: int) -> int:
    """Return how long requests in flight on the instance have, as its model says."""
    query = sql(
        "SELECT rollout FROM models WHERE id IN (SELECT model_id FROM model_instances WHERE id = {})",
        instance_id,
    )
    rows = await tx.fetch(query)
    return Rollout.model_validate_json(rows[0]["rollout"]).drain_seconds if rows else 0


def _on_worker(worker_id: int) -> Any:
    """Return the condition that an instance has a member on the worker, or is there as a whole."""
    return (ModelInstance.worker_id == worker_id) | ModelInstance.follower_ids.like(f"% {worker_id} %")


def _followers(members: Sequence[InstanceMember]) -> str:
    return " ".join(["", *(str(each.worker_id) for each in members[1:]), ""]) or " "


def _workers_of(columns: Mapping[str, Any]) -> set[int]:
    return {columns["worker_id"], *(each.worker_id for each in columns.get("members", ()))}


def _with(members: Sequence[InstanceMember], worker_id: int, new: Mapping[str, str]) -> list[InstanceMember]:
    return [each.model_copy(update=new) if each.worker_id == worker_id else each for each in members]


async def _worker(tx: Writing, worker_id: int | None) -> dict[str, str]:
    """Return what an instance repeats of its worker, locked: a worker that comes back elsewhere waits for us."""
    if worker_id is None:
        return {"worker_name": "", "worker_ip": ""}
    query = Worker.select(Worker.name, Worker.ip).where(Worker.id == worker_id).lock_rows()
    rows = await tx.fetch(query)
    if not rows:
        raise NotFound(f"there is no worker {worker_id}")
    return {"worker_name": rows[0]["name"], "worker_ip": rows[0]["ip"]}


async def _ready_workers(tx: Writing, worker_ids: Collection[int]) -> dict[int, dict[str, str]]:
    """Return what instances repeat of those workers that are ready, locked."""
    query = (
        Worker.select(Worker.id, Worker.name, Worker.ip)
        .where(Worker.id.is_in(filled([*worker_ids])), Worker.state == WorkerState.READY.value)
        .order_by(Worker.id)
        .lock_rows()
    )
    return {row["id"]: {"worker_name": row["name"], "worker_ip": row["ip"]} for row in await tx.fetch(query)}


def _expect(instance: ModelInstancePublic, states: InstanceState | Collection[InstanceState] | None) -> None:
    if states is None:
        return
    allowed = {states} if isinstance(states, InstanceState) else set(states)
    if instance.state not in allowed:
        wanted = " or ".join(sorted(state.value for state in allowed))
        raise Conflict(f"model instance {instance.name!r} is {instance.state.value} by now, not {wanted}")
