"""Engines on workers: environments that are there, or asked for."""

from __future__ import annotations

import builtins
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from gpustack.db.connection import Writing
from gpustack.db.dialect import filled
from gpustack.db.errors import conflicts
from gpustack.db.repositories.base import Repository, now
from gpustack.db.tables import WorkerEngine
from gpustack.kit.errors import Conflict
from gpustack.schemas.common import EventType, Page
from gpustack.schemas.worker_engines import (
    EngineHeld,
    EngineName,
    EngineState,
    WorkerEnginePublic,
    WorkerEngineReport,
    engine_key,
)

#: Rows of one statement.
_BATCH = 500
#: What a worker's list of what it has does not speak of: a request that is not answered yet.
_ASKED = frozenset({EngineState.PENDING, EngineState.INSTALLING, EngineState.REMOVING})


class WorkerEngines(Repository[WorkerEnginePublic]):
    """What engines workers have, and are to have."""

    table = WorkerEngine
    public = WorkerEnginePublic
    noun = "engine"
    topic = "worker-engines"
    searched = "backend"
    sortable = frozenset(
        {"id", "created_at", "updated_at", "backend", "version", "state", "worker_id", "disk"}
    )

    async def list(
        self,
        page: int = 1,
        per_page: int = 100,
        *,
        search: str | None = None,
        sort_by: str | None = None,
        worker_id: int | None = None,
        backend: str | None = None,
        state: EngineState | None = None,
    ) -> Page[WorkerEnginePublic]:
        """Return one page; ``page`` -1 is everything."""
        filters = {"worker_id": worker_id, "backend": backend, "state": state}
        return await self._page(page, per_page, search, sort_by, filters)

    async def request(self, name: EngineName, worker_ids: Sequence[int]) -> Sequence[WorkerEnginePublic]:
        """Ask the workers to install it (anew): state PENDING, ``request`` one more. NotFound when one is gone."""
        key = engine_key(name.backend, name.version, name.packages)
        taken = {"worker_engines_worker_id_engine_key_key": f"{name.title} is being asked for already"}
        gone = {"worker_engines_worker_id_fkey": "a worker is gone; ask again"}
        with conflicts(taken, gone):
            async with self._session.writing() as tx:
                there = await self._find(
                    tx,
                    WorkerEngine.worker_id.is_in(filled([*worker_ids])),
                    WorkerEngine.engine_key == key,
                    lock=True,
                )
                asked = [
                    (old, {"state": EngineState.PENDING, "state_message": "", "request": old.request + 1})
                    for old in there
                ]
                changed = await self._change_many(tx, asked)
                missing = sorted(set(worker_ids) - {old.worker_id for old in there})
                blank = {**_blank(name, key), "state": EngineState.PENDING, "request": 1}
                made = await self._insert_many(tx, [{**blank, "worker_id": each} for each in missing])
                return [*changed, *made]

    async def remove(self, engine_id: int) -> WorkerEnginePublic:
        """Ask the worker to take it away: state REMOVING, ``request`` one more."""
        async with self._session.writing() as tx:
            old = await self._get(tx, engine_id, lock=True)
            asked = {"state": EngineState.REMOVING, "state_message": "", "request": old.request + 1}
            return await self._change(tx, old, asked)

    async def report(self, engine_id: int, report: WorkerEngineReport) -> WorkerEnginePublic:
        """Store a worker's answer; Conflict when it answers an older request than the last."""
        async with self._session.writing() as tx:
            old = await self._get(tx, engine_id, lock=True)
            if report.request != old.request:
                raise Conflict(
                    f"this answers request {report.request} for {old.name.title}; now {old.request} is asked"
                )
            if report.gone:
                await self._remove(tx, [old])
                return old
            values: dict[str, Any] = {"state": report.state, "state_message": report.state_message}
            if report.disk:
                values["disk"] = report.disk
            if report.state is EngineState.INSTALLED and old.state is not EngineState.INSTALLED:
                values["last_used_at"] = old.last_used_at or now()
            return await self._change(tx, old, values)

    async def inventory(self, worker_id: int, held: Sequence[EngineHeld]) -> None:
        """Take what the worker has: rows of what it has no more go, but not those of what is asked of it."""
        moment = now()
        by_key = {each.key: each for each in held}
        gone = {"worker_engines_worker_id_fkey": f"there is no worker {worker_id}"}
        with conflicts({}, gone):
            async with self._session.writing() as tx:
                there = await self._find(tx, WorkerEngine.worker_id == worker_id, lock=True)
                await self._remove(
                    tx,
                    [
                        old
                        for old in there
                        if old.state is EngineState.INSTALLED and old.engine_key not in by_key
                    ],
                )
                changes = []
                for old in there:
                    if (now_held := by_key.get(old.engine_key)) is not None:
                        used = moment - timedelta(seconds=now_held.unused_seconds)
                        state = old.state if old.state in _ASKED else EngineState.INSTALLED
                        values = {"state": state, "disk": now_held.disk, "last_used_at": used}
                        if _differs(old, values):
                            changes.append((old, values))
                await self._change_many(tx, changes)
                known = {old.engine_key for old in there}
                await self._insert_many(
                    tx,
                    [
                        {
                            **_blank(
                                EngineName(
                                    backend=each.backend, version=each.version, packages=each.packages
                                ),
                                key,
                            ),
                            "worker_id": worker_id,
                            "state": EngineState.INSTALLED,
                            "request": 0,
                            "disk": each.disk,
                            "last_used_at": moment - timedelta(seconds=each.unused_seconds),
                        }
                        for key, each in by_key.items()
                        if key not in known
                    ],
                )

    async def _insert_many(
        self, tx: Writing, values: Sequence[Mapping[str, Any]]
    ) -> Sequence[WorkerEnginePublic]:
        """Insert rows, some hundreds with each statement, and emit CREATED for each."""
        moment = now()
        made: builtins.list[WorkerEnginePublic] = []
        for start in range(0, len(values), _BATCH):
            part = [
                {"created_at": moment, "updated_at": moment, **each}
                for each in values[start : start + _BATCH]
            ]
            rows = [self.table(**self._stored(each)) for each in part]
            numbers = await tx.fetch(self.table.insert(*rows).returning(self._id()))
            for each, number in zip(part, numbers, strict=True):
                created = WorkerEnginePublic.model_validate({**each, "id": number["id"]})
                self._emit(tx, EventType.CREATED, created)
                made.append(created)
        return made


def _blank(name: EngineName, key: str) -> dict[str, Any]:
    return {
        "backend": name.backend,
        "version": name.version,
        "packages": name.packages,
        "engine_key": key,
        "state_message": "",
        "disk": 0,
        "last_used_at": None,
    }


def _differs(old: WorkerEnginePublic, values: Mapping[str, Any]) -> bool:
    """Tell whether it is worth a row and an event; the time of use is known to the minute only."""
    if (old.state, old.disk) != (values["state"], values["disk"]) or old.last_used_at is None:
        return True
    used: datetime = values["last_used_at"]
    return abs((used - old.last_used_at).total_seconds()) > 60
