"""Rows as reconcile sees them, by builders; a store in memory; and a backend that does as it is told."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from gpustack.db import spec_digest
from gpustack.kit.errors import Conflict, NotFound, Unavailable
from gpustack.kit.text import GIB
from gpustack.plugin import (
    Artifact,
    EstimateRequest,
    GpuDevice,
    Host,
    InferenceBackend,
    LaunchPlan,
    LaunchRequest,
    ModelFacts,
    NoSettings,
    PipxPackage,
    Platform,
    ResourceClaim,
    Verdict,
)
from gpustack.plugin.memory import Learned, MemoryKey
from gpustack.schemas import (
    Claim,
    EventType,
    FactsDocument,
    InstanceState,
    MemoryStatus,
    ModelFilePublic,
    ModelFileReport,
    ModelFileState,
    ModelInstancePublic,
    ModelPublic,
    WorkerPublic,
    WorkerState,
    WorkerStatus,
    source_key,
)
from gpustack.schemas.models import SourceFields
from gpustack.schemas.workers import ABILITIES, MEMBERS
from gpustack.server.reconcile import Limits
from gpustack.server.reconcile.notes import Rows
from gpustack.server.reconcile.state import State

NOW = datetime(2026, 1, 1, tzinfo=UTC)
STAMPS = {"created_at": NOW, "updated_at": NOW}
_READY = WorkerState.READY
PATH = "/models/tiny.gguf"
FACTS = FactsDocument(format="gguf", path=PATH, weight_bytes=GIB, categories=("llm",))


def a_worker(number: int = 1, **more: Any) -> WorkerPublic:
    status = WorkerStatus(memory=MemoryStatus(total=more.pop("ram", 24) * GIB))
    values: dict[str, Any] = {
        "id": number,
        "name": f"worker-{number}",
        "ip": f"10.0.0.{number}",
        "cluster_id": 1,
        "worker_uuid": f"uuid-of-worker-{number}",
        "version": "1",
        "state": WorkerState.READY,
        "status": status,
        "catalogue": {"backends": ["obedient"], ABILITIES: [MEMBERS]},
        **STAMPS,
    }
    return WorkerPublic(**{**values, **more})


def a_model(number: int = 1, **more: Any) -> ModelPublic:
    values: dict[str, Any] = {
        "id": number,
        "name": "tiny" if number == 1 else f"tiny-{number}",
        "local_path": PATH,
        "cluster_id": 1,
        "categories": ["llm"],
        **STAMPS,
    }
    return described(ModelPublic(**{**values, **more}))


def described(model: ModelPublic, **changes: Any) -> ModelPublic:
    """Return ``model`` after ``changes``, with the digest that the store would give it."""
    changed = model.model_copy(update=changes)
    return changed.model_copy(update={"spec_digest": spec_digest(changed)})


def an_instance(
    number: int = 1, state: InstanceState = InstanceState.PENDING, **more: Any
) -> ModelInstancePublic:
    model_id = more.get("model_id", 1)
    values: dict[str, Any] = {
        "id": number,
        "name": f"tiny-{number:05}",
        "model_id": model_id,
        "model_name": "tiny",
        "cluster_id": 1,
        "state": state,
        "state_since": NOW,
        "spec_digest": a_model().spec_digest,
        **STAMPS,
    }
    if (worker := more.get("worker_id")) is not None:
        values["worker_name"] = f"worker-{worker}"
    return ModelInstancePublic(**{**values, **more})


def a_file(worker: int = 1, state: ModelFileState = ModelFileState.READY, **more: Any) -> ModelFilePublic:
    values: dict[str, Any] = {
        "id": worker,
        "worker_id": worker,
        "source": "local_path",
        "local_path": PATH,
        "source_key": source_key(a_model()),
        "state": state,
        "facts": FACTS if state is ModelFileState.READY else None,
        **STAMPS,
    }
    return ModelFilePublic(**{**values, **more})


def a_state(
    *,
    models: list[Any] | None = None,
    instances: list[Any] | None = None,
    workers: list[Any] | None = None,
    files: list[Any] | None = None,
    age: float = 0.0,
) -> State:
    """Return the state right after loading these rows at time 0; ``age`` is how long the states have lasted."""
    state = State(Limits(), {"obedient": "1.0"}, now=0.0)
    rows = Rows(
        models=[a_model()] if models is None else models,
        instances=instances or [],
        workers=[a_worker()] if workers is None else workers,
        files=files or [],
    )
    state.replace_rows(rows, now=0.0, wall=NOW + timedelta(seconds=age))
    return state


def running(number: int, worker: int = 1, ram: int = 4, **more: Any) -> Any:
    claim = Claim(ram=ram * GIB)
    return an_instance(number, InstanceState.RUNNING, worker_id=worker, computed_resource_claim=claim, **more)


class Obedient(InferenceBackend[NoSettings]):
    """Serves GGUF files and claims ``claim``; counts how often it is asked."""

    name = "obedient"
    settings_type = NoSettings
    default_version = "1.0"

    def __init__(self, claim: ResourceClaim | None = None) -> None:
        host = Host(log=logging.getLogger("test"), data_dir=Path(), bin_dir=Path())
        super().__init__(NoSettings(), host)
        self.claim = claim or ResourceClaim(ram=4 * GIB)
        self.verdict = Verdict.yes()
        self.asked = 0

    def accepts(self, model: ModelFacts, devices: tuple[GpuDevice, ...]) -> Verdict:
        self.asked += 1
        return self.verdict

    def estimate(self, request: EstimateRequest) -> ResourceClaim:
        return self.claim

    def artifact(self, version: str, platform: Platform) -> Artifact:
        return PipxPackage(package="obedient", version=version, command="obedient")

    def launch(self, request: LaunchRequest) -> LaunchPlan:
        raise NotImplementedError


class MemoryStore:
    """The store's interface as far as reconcile uses it, on dictionaries; every write makes its event."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[int, Any]] = {
            topic: {}
            for topic in ("models", "model-instances", "workers", "model-files", "inference-backends")
        }
        self.log: list[SimpleNamespace] = []
        self.down = False
        self.reads = 0
        self.models = _Models(self, "models")
        self.instances = _Instances(self, "model-instances")
        self.workers = _Workers(self, "workers")
        self.model_files = _Files(self, "model-files")
        self.inference_backends = _Repository(self, "inference-backends")
        self.events = SimpleNamespace(last_number=self._last)
        self.peaks: dict[MemoryKey, Learned] = {}
        self.measured = SimpleNamespace(all=self._peaks)

    async def _peaks(self) -> dict[MemoryKey, Learned]:
        self.check()
        return dict(self.peaks)

    async def _last(self) -> int:
        self.check()
        return len(self.log)

    def check(self) -> None:
        if self.down:
            raise Unavailable("the database does not answer", retry_after=0.1)

    async def returned(self) -> None:
        """Wait until the database answers again."""
        while self.down:
            await asyncio.sleep(0.005)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[MemoryStore]:
        before, count = deepcopy(self.rows), len(self.log)
        try:
            yield self
        except BaseException:
            self.rows = before
            del self.log[count:]
            raise

    def put(self, topic: str, row: Any) -> Any:
        kind = EventType.UPDATED if row.id in self.rows[topic] else EventType.CREATED
        self.rows[topic][row.id] = row
        self._event(topic, kind, row)
        return row

    def remove(self, topic: str, number: int) -> None:
        self._event(topic, EventType.DELETED, self.rows[topic].pop(number))

    def _event(self, topic: str, kind: EventType, row: Any) -> None:
        number = len(self.log) + 1
        data = row.model_dump(mode="json")
        self.log.append(SimpleNamespace(number=number, topic=topic, type=kind, id=row.id, data=data))

    @asynccontextmanager
    async def subscribe(self, topics: set[str], since: int | None = None) -> AsyncIterator[Any]:
        events = self._follow(topics, since)
        try:
            yield events
        finally:
            await events.aclose()

    async def _follow(self, topics: set[str], since: int | None = None) -> AsyncIterator[SimpleNamespace]:
        at = len(self.log) if since is None else since
        while True:
            self.check()
            while at < len(self.log):
                event = self.log[at]
                at += 1
                if event.topic in topics:
                    yield event
            await asyncio.sleep(0.005)


class _Repository:
    def __init__(self, store: MemoryStore, topic: str) -> None:
        self._store, self._topic = store, topic

    @property
    def all(self) -> dict[int, Any]:
        return self._store.rows[self._topic]

    def put(self, row: Any) -> Any:
        return self._store.put(self._topic, row)

    async def list(self, **_: Any) -> SimpleNamespace:
        self._store.check()
        self._store.reads += 1
        return SimpleNamespace(items=list(self.all.values()))

    async def get(self, number: int) -> Any:
        self._store.check()
        if number not in self.all:
            raise NotFound(f"{self._topic} {number} does not exist")
        return self.all[number]

    async def locked(self, number: int) -> Any:
        return await self.get(number)

    async def delete(self, number: int) -> None:
        await self.get(number)
        self._store.remove(self._topic, number)

    async def change(self, number: int, **columns: Any) -> Any:
        row = await self.get(number)
        return self.put(row.model_copy(update={**columns, "updated_at": datetime.now(UTC)}))


class _Models(_Repository):
    async def set_ready(self, number: int, count: int) -> ModelPublic:
        return await self.change(number, ready_replicas=count)

    async def set_facts(self, number: int, *, categories: list[str]) -> ModelPublic:
        return await self.change(number, categories=categories)

    async def scale(self, number: int, replicas: int, *, expect: int) -> ModelPublic:
        if (await self.get(number)).replicas != expect:
            raise Conflict(f"model {number} was changed meanwhile")
        return await self.change(number, replicas=replicas)


class _Instances(_Repository):
    async def create(self, model: ModelPublic, name: str) -> ModelInstancePublic:
        self._store.check()
        if model.id not in self._store.rows["models"]:
            raise NotFound(f"model {model.id} does not exist")
        number = max((e.id for e in self._store.log if e.topic == self._topic), default=0) + 1
        return self.put(
            an_instance(
                number,
                name=name,
                model_id=model.id,
                model_name=model.name,
                state_since=datetime.now(UTC),
                spec_digest=model.spec_digest,
            )
        )

    async def update(self, number: int, *, expect_state: Any = None, **columns: Any) -> ModelInstancePublic:
        row = await self.get(number)
        if expect_state is not None and row.state != expect_state:
            raise Conflict(f"instance {number} is {row.state}")
        if "worker_id" in columns:
            worker = self._store.rows["workers"].get(columns["worker_id"])
            columns |= {
                "worker_name": worker.name if worker else "",
                "worker_ip": worker.ip if worker else "",
            }
        if columns.get("state", row.state) != row.state:
            columns["state_since"] = datetime.now(UTC)
        return await self.change(number, **columns)

    async def schedule(self, wanted: Any, *, expect: Any) -> list[ModelInstancePublic]:
        self._store.check()
        given = []
        for number, columns in sorted(wanted.items()):
            row = self.all.get(number)
            members = columns.get("members", [])
            ids = [each.worker_id for each in members] or [columns["worker_id"]]
            workers = {each: self._store.rows["workers"].get(each) for each in ids}
            ready = all(each is not None and each.state is _READY for each in workers.values())
            if row is not None and row.state is expect[number] and ready:
                named = [
                    each.model_copy(update={"worker_name": workers[each.worker_id].name}) for each in members
                ]
                new = {**columns, "members": named, "attempt": row.attempt + 1}
                given.append(await self.update(number, state=InstanceState.SCHEDULED, **new))
        return given

    async def drain(
        self, number: int, *, why: str, seconds: int | None = None, expect_state: Any = None
    ) -> ModelInstancePublic | None:
        row = await self.get(number)
        if expect_state is not None and row.state != expect_state:
            raise Conflict(f"instance {number} is {row.state}")
        if row.worker_id is None:
            return await self.delete(number)
        if row.draining_since is not None:
            return row
        return await self.change(
            number, draining_since=datetime.now(UTC), drain_seconds=seconds or 0, state_message=why
        )


class _Workers(_Repository):
    async def set_state(self, number: int, state: WorkerState, message: str) -> WorkerPublic:
        return await self.change(number, state=state, state_message=message)


class _Files(_Repository):
    async def request(self, worker_id: int, source: SourceFields, revision: str = "") -> ModelFilePublic:
        self._store.check()
        key = source_key(source)
        for row in self.all.values():
            if (row.worker_id, row.source_key) == (worker_id, key):
                asked = {"state": ModelFileState.ANALYZING, "resolved_revision": revision}
                return await self.change(row.id, request=row.request + 1, **asked)
        fields = {name: getattr(source, name) for name in SourceFields.__annotations__}
        fields["resolved_revision"] = revision
        number = len(self.all) + 1
        return self.put(a_file(worker_id, ModelFileState.ANALYZING, id=number, source_key=key, **fields))

    async def report(self, number: int, report: ModelFileReport) -> ModelFilePublic:
        return await self.change(
            number,
            state=report.state,
            state_message=report.state_message,
            facts=report.facts,
            resolved_revision=report.resolved_revision,
        )
