"""Workers."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from piccolo.querystring import QueryString

from gpustack.db.connection import Writing
from gpustack.db.dialect import filled
from gpustack.db.errors import conflicts
from gpustack.db.repositories import fleet
from gpustack.db.repositories.base import Repository, json, now, sql
from gpustack.db.repositories.instances import Instances
from gpustack.db.repositories.model_files import ModelFiles
from gpustack.db.repositories.worker_engines import WorkerEngines
from gpustack.db.tables import Cluster, ModelFile, ModelInstance, Worker, WorkerEngine
from gpustack.kit.errors import Forbidden, InvalidInput, NotFound
from gpustack.lifecycle import joining
from gpustack.schemas.common import Page
from gpustack.schemas.workers import OWN_LABELS, Heartbeat, WorkerPublic, WorkerRegistration, WorkerState

log = logging.getLogger(__name__)

#: Workers in one statement; nine values each stay below the protocol's 32767.
_BATCH = 3000
#: A worker heard from so recently is alive: two heartbeats, and what writing them takes.
_ALIVE = timedelta(seconds=25)


@dataclass(frozen=True, slots=True)
class Holder:
    """Whose a credential is: of a worker, what every request of its is checked against."""

    id: int
    name: str
    version: str
    session: int


@dataclass(frozen=True, slots=True)
class Door:
    """How the server calls a worker's own port."""

    ip: str
    port: int
    token: str = field(repr=False)
    worker_uuid: str = ""
    #: Where its data directory is; empty for a worker that says it runs beside its server.
    home: str = ""

    def runs_beside(self, built_in: str) -> bool:
        """Tell whether it is the worker ``built_in``, whose engines the server reaches at its own loopback.

        An address tells nothing: another worker on the machine may be in a network of its own.
        """
        return not self.home and self.worker_uuid == built_in != ""


_KNOWN = (
    Worker.home,
    Worker.boot,
    Worker.door_token,
    Worker.public_key,
    Worker.start_id,
    Worker.earlier_start,
    Worker.refused_start,
)
_HOLDER = (Worker.id, Worker.name, Worker.version, Worker.session)
_DOOR = (Worker.ip, Worker.port, Worker.door_token, Worker.worker_uuid, Worker.home)


def _door(row: Mapping[str, Any]) -> Door:
    return Door(row["ip"], row["port"], row["door_token"], row["worker_uuid"], row["home"])


class Workers(Repository[WorkerPublic]):
    """Machines."""

    table = Worker
    public = WorkerPublic
    noun = "worker"
    topic = "workers"
    sortable = frozenset(
        {
            "id",
            "name",
            "created_at",
            "updated_at",
            "hostname",
            "ip",
            "state",
            "version",
            "heartbeat_time",
            "cluster_id",
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
        state: WorkerState | None = None,
    ) -> Page[WorkerPublic]:
        """Return one page; ``page`` -1 is everything."""
        return await self._page(page, per_page, search, sort_by, {"cluster_id": cluster_id, "state": state})

    async def document(
        self,
        page: int = 1,
        per_page: int = 100,
        *,
        search: str | None = None,
        sort_by: str | None = None,
        cluster_id: int | None = None,
    ) -> bytes:
        """Return one page as JSON, which for a large fleet takes a tenth of the time of :meth:`list`."""
        rows, pagination = await self._rows(page, per_page, search, sort_by, {"cluster_id": cluster_id})
        return fleet.page_text(rows, self.public, self._json, pagination)

    async def gpus(
        self, *, cluster_id: int | None = None, worker_id: int | None = None
    ) -> Sequence[dict[str, Any]]:
        """Return all GPUs in the fields of GpuDevicePublic, in the order of their workers."""
        filters = {"cluster_id": cluster_id, "id": worker_id}
        rows, _ = await self._rows(-1, 1, None, None, filters)
        return fleet.gpus_of(rows)

    async def by_token_digest(self, digest: str) -> Holder | None:
        """Return the worker whose credential this is; None when there is none."""
        rows = await self._session.fetch(Worker.select(*_HOLDER).where(Worker.token_digest == digest))
        return Holder(**rows[0]) if rows else None

    async def counts(self) -> dict[str, int]:
        """Return how many workers are in each state; states without any are 0."""
        rows = await self._session.fetch(sql("SELECT state, COUNT(*) AS workers FROM workers GROUP BY state"))
        return {each.value: 0 for each in WorkerState} | {row["state"]: row["workers"] for row in rows}

    async def door(self, worker_id: int) -> Door:
        """Return how to call the worker's own port; NotFound when it does not exist."""
        rows = await self._session.fetch(Worker.select(*_DOOR).where(Worker.id == worker_id))
        if not rows:
            raise self._missing(worker_id)
        return _door(rows[0])

    async def doors(self) -> dict[int, Door]:
        """Return how to call each worker's own port, by the worker's number."""
        rows = await self._session.fetch(Worker.select(Worker.id, *_DOOR))
        return {row["id"]: _door(row) for row in rows}

    async def register(
        self, wanted: WorkerRegistration, token_digest: str, cluster_id: int, *, renews: int | None = None
    ) -> WorkerPublic:
        """Add the worker, or renew the row that has its key, or its ``worker_uuid``.

        ``wanted.proof`` was verified. A name that another worker has gets ``-1``, ``-2``… appended; a worker that comes
        back keeps its own. When it comes back with another name or address, its instances follow. ``renews`` is the
        worker whose own credential was shown: that counts for its own row. Who is the worker that the row stands for
        is decided by :mod:`gpustack.lifecycle.joining`.

        Raises Conflict while the worker of that row is alive and this is another one (the disk was copied),
        Unauthenticated when a credential came from another home, Forbidden when it is another worker's.
        """
        claim = _claim(wanted, by_credential=renews is not None)
        values: dict[str, Any] = {
            name: getattr(wanted, name)
            for name in WorkerRegistration.model_fields
            if name not in ("proof", "start")
        }
        values |= {
            "token_digest": token_digest,
            "state_message": "",
            "heartbeat_time": now(),
            "gpu_count": len(wanted.status.gpu_devices),
        }
        if claim.public_key:
            values["public_key"] = claim.public_key
        with conflicts({"workers_token_digest_key": "the worker's credential is in use already"}):
            async with self._session.writing() as tx:
                # Registrations take turns: two that look for a free name at once would find the same.
                locked = Cluster.select(Cluster.id).order_by(Cluster.id).lock_rows()
                if cluster_id not in {row["id"] for row in await tx.fetch(locked)}:
                    raise NotFound(f"there is no cluster {cluster_id}")
                old = await self._claimed(tx, wanted.worker_uuid, claim.public_key)
                if renews is not None and (old is None or renews != old.id):
                    raise Forbidden("a worker's own credential renews its own registration and no other")
                if old is None:
                    values |= _start(joining.first(claim))
                    name = await self._free_name(tx, wanted.name)
                    values |= {
                        "state": WorkerState.READY,
                        "name": name,
                        "labels": _named(wanted.labels, name),
                    }
                    return await self._insert(tx, {**values, "cluster_id": cluster_id})
                start = joining.admit(await self._known(tx, old), claim)
                if start.contested:
                    log.warning(
                        "worker %s: two live starts say that they are it; the newer one is refused until it has made "
                        "a key of its own: was a disk copied?",
                        old.name,
                    )
                values |= _start(start)
                values["state"] = _up(old)
                values["name"] = await self._kept_name(tx, old, wanted.name)
                # Those that an administrator has added.
                values["labels"] = _named({**old.labels, **wanted.labels}, values["name"])
                renewed = await self._change(tx, old, values)
                if (renewed.name, renewed.ip) != (old.name, old.ip):
                    await Instances(tx).follow_worker(tx, renewed.id, renewed.name, renewed.ip)
                return renewed

    async def _claimed(self, tx: Writing, worker_uuid: str, public_key: str) -> WorkerPublic | None:
        """Return, locked, the row that a registration is about; None for a new worker."""
        found = await self._find(tx, Worker.public_key == public_key, lock=True) if public_key else []
        found = found or await self._find(tx, Worker.worker_uuid == worker_uuid, lock=True)
        return found[0] if found else None

    async def _known(self, tx: Writing, old: WorkerPublic) -> joining.Known:
        [row] = await tx.fetch(Worker.select(*_KNOWN).where(Worker.id == old.id))
        heard = old.heartbeat_time
        return joining.Known(
            name=old.name,
            hostname=old.hostname,
            ip=old.ip,
            home=row["home"],
            boot=row["boot"],
            door_token=row["door_token"],
            public_key=row["public_key"] or "",
            session=old.session,
            start=row["start_id"],
            earlier_start=row["earlier_start"],
            refused_start=row["refused_start"],
            alive=heard is not None and now() - heard < _ALIVE,
        )

    async def _kept_name(self, tx: Writing, known: WorkerPublic, wanted: str) -> str:
        """Keep ``box-1`` when ``box`` is asked for, else take the new name: the user changed it."""
        suffix = known.name.removeprefix(f"{wanted}-")
        if known.name == wanted or (suffix != known.name and suffix.isdigit()):
            return known.name
        return await self._free_name(tx, wanted)

    async def _free_name(self, tx: Writing, wanted: str) -> str:
        pattern = wanted.replace("!", "!!").replace("%", "!%").replace("_", "!_") + "-%"
        query = sql("SELECT name FROM workers WHERE name = {} OR name LIKE {} ESCAPE '!'", wanted, pattern)
        taken = {row["name"] for row in await tx.fetch(query)}
        number, name = 0, wanted
        while name in taken:
            number += 1
            name = f"{wanted}-{number}"
        return name

    async def heartbeat_many(
        self, beats: Mapping[int, Heartbeat], arrivals: Mapping[int, datetime] | None = None
    ) -> set[int]:
        """Store the signs of life of many workers in one statement and return the ids that do not exist.

        ``arrivals`` says when they came; without it that is now.
        No events, except that UNREACHABLE workers become READY again. NOT_READY stays: somebody wanted it.
        """
        gone: set[int] = set()
        silent = []
        ids = sorted(beats)
        for start in range(0, len(ids), _BATCH):
            part = {one: beats[one] for one in ids[start : start + _BATCH]}
            rows = await self._session.fetch(_heartbeat(part, arrivals or {}))
            gone |= part.keys() - {row["id"] for row in rows}
            silent += [row["id"] for row in rows if row["state"] == WorkerState.UNREACHABLE.value]
        for worker_id in silent:
            try:
                await self.set_state(worker_id, WorkerState.READY, "")
            except NotFound:
                gone.add(worker_id)
        return gone

    async def set_state(self, worker_id: int, state: WorkerState, message: str = "") -> WorkerPublic:
        """Change the state; an event follows if that changes anything. One in maintenance does not become ready."""
        async with self._session.writing() as tx:
            old = await self._get(tx, worker_id, lock=True)
            new = _up(old) if state is WorkerState.READY else state
            return await self._change(tx, old, {"state": new, "state_message": message})

    async def update(
        self, worker_id: int, *, labels: Mapping[str, str] | None = None, maintenance: bool | None = None
    ) -> WorkerPublic:
        """Replace the labels but the worker's own, and take it out of service or back; None changes nothing.

        Raises InvalidInput when one of its own is to be another.
        """
        async with self._session.writing() as tx:
            old = await self._get(tx, worker_id, lock=True)
            values: dict[str, Any] = {} if labels is None else {"labels": _labels(old, labels)}
            if maintenance is not None:
                values["maintenance"] = maintenance
                if old.state in (WorkerState.READY, WorkerState.MAINTENANCE):
                    new = old.model_copy(update={"maintenance": maintenance})
                    values |= {"state": _up(new), "state_message": ""}
            return await self._change(tx, old, values)

    async def delete(self, worker_id: int) -> WorkerPublic:
        """Remove a worker, the instances on it and what it knew of files, each with its own event."""
        async with self._session.writing() as tx:
            worker = await self._get(tx, worker_id, lock=True)
            instances, files, engines = Instances(tx), ModelFiles(tx), WorkerEngines(tx)
            await instances._remove(
                tx, await instances._find(tx, ModelInstance.worker_id == worker_id, lock=True)
            )
            await files._remove(tx, await files._find(tx, ModelFile.worker_id == worker_id, lock=True))
            await engines._remove(tx, await engines._find(tx, WorkerEngine.worker_id == worker_id, lock=True))
            await self._remove(tx, [worker])
            return worker


def _labels(worker: WorkerPublic, wanted: Mapping[str, str]) -> dict[str, str]:
    """Return the labels ``wanted`` with the worker's own."""
    own = {name: value for name, value in worker.labels.items() if name in OWN_LABELS}
    for name, value in own.items():
        if wanted.get(name, value) != value:
            raise InvalidInput(
                f"worker {worker.name} itself says that its label {name} is {value!r}; give another name to a label of yours"
            )
    return {**wanted, **own}


def _named(labels: dict[str, str], name: str) -> dict[str, str]:
    """Return ``labels`` with the name that the worker was given, not the one that it asked for."""
    return {**labels, "worker-name": name} if "worker-name" in labels else labels


def _claim(wanted: WorkerRegistration, *, by_credential: bool) -> joining.Claim:
    return joining.Claim(
        hostname=wanted.hostname,
        ip=wanted.ip,
        home=wanted.home,
        boot=wanted.boot,
        start=wanted.start,
        door_token=wanted.door_token,
        public_key=wanted.proof.public_key if wanted.proof is not None else "",
        by_credential=by_credential,
    )


def _start(start: joining.Start) -> dict[str, Any]:
    return {
        "session": start.session,
        "start_id": start.start,
        "earlier_start": start.earlier_start,
        "refused_start": start.refused_start,
    }


def _up(worker: WorkerPublic) -> WorkerState:
    """Return the state of a worker that gives signs of life."""
    return WorkerState.MAINTENANCE if worker.maintenance else WorkerState.READY


def _heartbeat(beats: Mapping[int, Heartbeat], arrivals: Mapping[int, datetime]) -> QueryString:
    """Return one UPDATE for all; CASE is understood by every database, unlike a join with VALUES."""
    moment = now()
    workers = filled([*beats])
    times = " ".join("WHEN {} THEN {}" for _ in workers)
    parts = ["UPDATE workers SET heartbeat_time = CASE id ", times, " ELSE heartbeat_time END"]
    arguments: list[Any] = [value for one in workers for value in (one, arrivals.get(one, moment))]
    columns: dict[str, list[tuple[int, Any]]] = {"status": [], "gpu_count": [], "installed_versions": []}
    for worker_id, beat in beats.items():
        if beat.status is not None:
            columns["status"].append((worker_id, json(beat.status)))
            columns["gpu_count"].append((worker_id, len(beat.status.gpu_devices)))
        if beat.installed_versions is not None:
            columns["installed_versions"].append((worker_id, json(beat.installed_versions)))
    for column, changes in columns.items():
        if not changes:
            continue
        listed = filled(changes)
        cases = " ".join("WHEN {} THEN {}" for _ in listed)
        parts.append(f", {column} = CASE id {cases} ELSE {column} END")
        arguments += [value for change in listed for value in change]
    holes = ", ".join("{}" for _ in workers)
    parts.append(f" WHERE id IN ({holes}) RETURNING id, state")
    return sql("".join(parts), *arguments, *workers)
