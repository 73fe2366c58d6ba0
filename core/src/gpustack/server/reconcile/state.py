"""Everything reconcile knows, in memory: the rows as events tell them, and notes that no row holds.

Times are those of one monotonic clock, in seconds. A worker's clock is never looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from gpustack.lifecycle import group as groups
from gpustack.lifecycle.instance import time_allowed
from gpustack.lifecycle.suspicion import Rhythm
from gpustack.scheduling import Gpu, Holding, Request, Snapshot, Worker, others_use
from gpustack.scheduling.records import RecordedFleet
from gpustack.schemas import (
    EventType,
    Heartbeat,
    InferenceBackendRow,
    InstanceState,
    ModelFilePublic,
    ModelFileState,
    ModelInstancePublic,
    ModelPublic,
    WorkerPublic,
    WorkerState,
    WorkerStatus,
    source_key,
)
from gpustack.schemas.common import Record
from gpustack.server.known_backends import CUSTOM, KnownBackends
from gpustack.server.reconcile.comparing import fell, offers_of, wish_of
from gpustack.server.reconcile.holdings import claim_on, holdings_of
from gpustack.server.reconcile.learned import Peaks
from gpustack.server.reconcile.notes import Limits, Notes, Others, Promise, Refusal, Rows
from gpustack.server.reconcile.questions import Answer, Question, facts_of, kind_of, no_containers
from gpustack.server.reconcile.scaling import Scaling
from gpustack.server.reconcile.timers import Timers

#: Deleted instances that are remembered: far more than are deleted while a write or an event is on its way.
_MOST_DELETED = 1000

#: A worker in one of these states is heard.
_UP = (WorkerState.READY, WorkerState.MAINTENANCE)

#: The facts of a file in one of these states hold.
_KNOWN = (ModelFileState.READY, ModelFileState.ANALYZED, ModelFileState.DOWNLOADING)
#: These may last as long as they go on.
_BY_PROGRESS = (InstanceState.ANALYZING, InstanceState.DOWNLOADING)

#: As :func:`gpustack.schemas.source_key` makes it.
SourceKey = str


class State:
    """The rows and notes. Methods here keep them consistent and decide nothing."""

    def __init__(self, limits: Limits, versions: Mapping[str, str], *, now: float) -> None:
        self.limits = limits
        #: The default version of each backend, in the order in which they are asked.
        self.versions = versions
        #: Backends that span workers.
        self.spanning: frozenset[str] = frozenset()
        self.loaded_at = now
        self.models: dict[int, ModelPublic] = {}
        self.instances: dict[int, ModelInstancePublic] = {}
        self.workers: dict[int, WorkerPublic] = {}
        self.files: dict[int, ModelFilePublic] = {}
        self.backends: dict[int, InferenceBackendRow] = {}
        self.notes: dict[int, Notes] = {}
        self.seen: dict[int, float] = {}
        self.rhythms: dict[int, Rhythm] = {}
        #: The last time that a worker was missed: when it fell silent, and when it was heard again.
        self.outages: dict[int, tuple[float, float]] = {}
        self.others: dict[int, Others] = {}
        self.answers: dict[Question, Answer] = {}
        self.peaks = Peaks()
        self.asking: set[Question] = set()
        #: The workers and what instances hold there, as the scheduler sees them; kept up to date row by row.
        self.fleet = RecordedFleet()
        #: What workers are alike in, see :func:`kind_of`.
        self.kinds: dict[int, str] = {}
        #: Instances without a worker.
        self.unplaced: set[int] = set()
        #: Counts changes after which a refused instance may fit; whether one does, the fleet tells.
        self.capacity = 0
        self.timers = Timers()
        #: What the files say a model can do, from the first worker that has read them.
        self.categories: dict[SourceKey, tuple[str, ...]] = {}
        #: Names of the instances that drain, by model and instance.
        self.draining: dict[int, dict[int, str]] = {}
        #: Instances that the end of another one would help.
        self.helped: set[int] = set()
        #: Room that is kept for instances that wait for it; see :mod:`gpustack.server.reconcile.precedence`.
        self.promises: dict[int, Promise] = {}
        #: What is asked of the models.
        self.scaling = Scaling()
        self._known: KnownBackends | None = None
        self._deleted: dict[int, None] = {}
        #: Ids of files by worker.
        self._file_ids: dict[SourceKey, dict[int, int]] = {}
        #: Counts changes of files.
        self._file_news: dict[SourceKey, int] = {}

    # Rows ------------------------------------------------------------------------------------------------

    def apply(self, topic: str, kind: EventType, id: int, data: dict[str, Any], now: float) -> None:  # noqa: A002
        """Take in one event of the feed."""
        if kind is EventType.DELETED:
            self._drop(topic, id)
        elif topic == "models":
            self.put_model(ModelPublic.model_validate(data))
        elif topic == "model-instances":
            self.put_instance(ModelInstancePublic.model_validate(data), now)
        elif topic == "workers":
            self.put_worker(WorkerPublic.model_validate(data), now)
        elif topic == "model-files":
            self.put_file(ModelFilePublic.model_validate(data))
        elif topic == "inference-backends":
            self.put_backend(InferenceBackendRow.model_validate(data))

    def put_model(self, new: ModelPublic) -> None:
        """Take in a model; after a change of what it runs, or where, its instances are tried anew."""
        old = self.models.get(new.id)
        self.models[new.id] = new
        if old is None or old.priority != new.priority:
            self._follow_priority(new)
        if old is not None and wish_of(old) != wish_of(new):
            self._try_anew(new)

    def _try_anew(self, model: ModelPublic) -> None:
        for each in self.instances_of(model.id):
            notes = self.notes[each.id]
            notes.retry, notes.parked = True, None
            notes.asked.clear()

    def _follow_priority(self, model: ModelPublic) -> None:
        for each in self.instances_of(model.id):
            self.notes[each.id].parked = None
            for held in self._holdings(each):
                self.fleet.hold(held)

    def put_instance(self, new: ModelInstancePublic, now: float) -> None:
        """Take in an instance, with the deadline of its state; one that was deleted stays so."""
        if new.id in self._deleted:
            return  # the answer to our own write came after the event of its deletion
        old = self.instances.get(new.id)
        notes = self.notes.get(new.id)
        if notes is None:
            notes = self.notes[new.id] = Notes(since=now)
        if old is None or old.state is not new.state or _progressed(old, new):
            notes.since = now
        if new.draining_since is not None and notes.draining is None:
            notes.draining = now
            self.draining.setdefault(new.model_id, {})[new.id] = new.name
        if old is not None:
            self.peaks.follow(old, new)
        self.instances[new.id] = new
        if new.state is not InstanceState.PENDING or new.draining_since is not None:
            self._promise(new.id, None)
        self._keep(old, new)
        self._set_deadline(new, notes)

    def put_worker(self, new: WorkerPublic, now: float) -> None:
        """Take in a worker. Joining and becoming ready are signs of life; other changes are the server's own."""
        old = self.workers.get(new.id)
        self.workers[new.id] = new
        if old is None or (old.state not in _UP and new.state in _UP):
            self.seen[new.id] = now
        if old is None or offers_of(old) != offers_of(new):
            self.capacity += 1
        if old is None or old.status != new.status:
            self.measured(new.id, new.status)
        self.fleet.put_worker(self._worker(new))
        self.timers.put(("worker", new.id), self.silent_at(new.id))

    def put_file(self, new: ModelFilePublic) -> None:
        """Take in a model file; a row from before a newer request is old news."""
        old = self.files.get(new.id)
        if old is not None and new.request < old.request:
            return
        self.files[new.id] = new
        self._file_ids.setdefault(new.source_key, {})[new.worker_id] = new.id
        self._read(new)
        if old is None or old.state is not new.state:
            self.capacity += 1
            self._file_news[new.source_key] = self.capacity

    def put_backend(self, new: InferenceBackendRow) -> None:
        """Take in a row of a backend. Engines that run go on; what waits for one is tried anew."""
        self.backends[new.id] = new
        self._follow_backend(new.backend_name)

    def _follow_backend(self, name: str) -> None:
        before = self.known.served_by_custom
        self._known = None
        if self.known.served_by_custom != before:
            for worker in self.workers.values():
                self.fleet.put_worker(self._worker(worker))
        for model in self.models.values():
            if model.backend == name:
                self._try_anew(model)

    @property
    def known(self) -> KnownBackends:
        """The backends that there are now."""
        if self._known is None or self._known.versions is not self.versions:
            self._known = KnownBackends(self.versions, self.backends.values())
        return self._known

    def _drop(self, topic: str, id: int) -> None:  # noqa: A002
        if topic == "models":
            self.models.pop(id, None)
            self.scaling.forget_model(id)
        elif topic == "inference-backends":
            if (row := self.backends.pop(id, None)) is not None:
                self._follow_backend(row.backend_name)
        elif topic == "model-instances":
            self.drop_instance(id)
        elif topic == "workers":
            self.drop_worker(id)
        elif topic == "model-files" and (file := self.files.pop(id, None)) is not None:
            self._file_ids.get(file.source_key, {}).pop(file.worker_id, None)
            self._read(file)

    def _read(self, file: ModelFilePublic) -> None:
        """Bring ``categories`` up to date after a change of ``file``."""
        key = file.source_key
        rows = [self.files[id_] for _, id_ in sorted(self._file_ids.get(key, {}).items())]
        found = [each.facts for each in rows if each.state in _KNOWN and each.facts is not None]
        if found:
            self.categories[key] = facts_of(found[0]).categories
        else:
            self.categories.pop(key, None)
        if not rows:
            self._file_ids.pop(key, None)
            self._file_news.pop(key, None)

    def drop_worker(self, worker_id: int) -> None:
        """Forget a worker."""
        self.workers.pop(worker_id, None)
        self.seen.pop(worker_id, None)
        self.rhythms.pop(worker_id, None)
        self.outages.pop(worker_id, None)
        self.others.pop(worker_id, None)
        self.scaling.forget_worker(worker_id)
        self.kinds.pop(worker_id, None)
        self.fleet.remove_worker(worker_id)
        self.timers.drop(("worker", worker_id))

    def drop_instance(self, instance_id: int) -> None:
        """Forget an instance; what it held is free."""
        self._deleted[instance_id] = None
        if len(self._deleted) > _MOST_DELETED:
            del self._deleted[next(iter(self._deleted))]
        old = self.instances.pop(instance_id, None)
        self.notes.pop(instance_id, None)
        self.helped.discard(instance_id)
        self._promise(instance_id, None)
        self.timers.drop(("instance", instance_id))
        self.timers.drop(("patience", instance_id))
        self.unplaced.discard(instance_id)
        self.fleet.release(instance_id)
        if old is not None and holdings_of(old):
            self.capacity += 1
        if old is not None and (leaving := self.draining.get(old.model_id)) is not None:
            leaving.pop(instance_id, None)
            if not leaving:
                del self.draining[old.model_id]

    # Signs of life and measurements ------------------------------------------------------------------------

    def heard(self, worker_id: int, beat: Heartbeat, now: float) -> bool:
        """Take in a heartbeat; return True when something may follow from it."""
        worker = self.workers.get(worker_id)
        if worker is None:
            return False
        self._gap(worker_id, self.seen.get(worker_id, now), now)
        self.alive(worker_id, now)
        before = self.capacity
        if beat.status is not None:
            self.take_status(worker_id, beat.status)
        if beat.kv_caches is not None:
            self.scaling.note_caches(worker_id, beat.kv_caches)
        if worker.state is WorkerState.UNREACHABLE:
            return True
        return self.capacity != before and any(not self.refused_still(each) for each in self.unplaced)

    def _gap(self, worker_id: int, before: float, now: float) -> None:
        """Take note of the silence between two signs of life."""
        if now - before > self.late(worker_id):
            self.outages[worker_id] = (before, now)
        rhythm = self.rhythms.setdefault(worker_id, Rhythm())
        rhythm.note(now - before, longest=self.limits.heartbeat_loss)

    def alive(self, worker_id: int, when: float) -> None:
        """Note that the worker gave a sign of life at ``when``; an older one than is known changes nothing."""
        self.seen[worker_id] = max(when, self.seen.get(worker_id, when))
        self.timers.put(("worker", worker_id), self.silent_at(worker_id))

    def forgive(self, seconds: float) -> None:
        """Do not count ``seconds`` in which nothing could be heard as silence of the workers."""
        for worker_id in self.seen:
            self.alive(worker_id, self.seen[worker_id] + seconds)

    def take_status(self, worker_id: int, status: WorkerStatus) -> None:
        """Take in a measurement."""
        worker = self.workers[worker_id]
        if worker.status != status:
            self.workers[worker_id] = new = worker.model_copy(update={"status": status})
            if offers_of(new) != offers_of(worker):
                self.capacity += 1  # as when GPUs are found later than the rest, or a faulty one is mended
            self.measured(worker_id, status)
            self.fleet.put_worker(self._worker(self.workers[worker_id]))

    def measured(self, worker_id: int, status: WorkerStatus) -> None:
        """Work out others' use from a measurement, with the instances that run at its time."""
        running = [
            claim_on(each, worker_id)
            for held in self.fleet.held_on(worker_id)
            if (each := self.instances[held.instance_id]).state is InstanceState.RUNNING
        ]
        unified = status.memory.is_unified_memory
        ram = sum(each.ram + (sum(each.vram.values()) if unified else 0) for each in running)
        new = Others(
            ram=others_use(status.memory.used, ram) if status.memory.others is None else status.memory.others,
            vram={
                # The worker may know whose the memory is; without that our instances' claims stand for their use.
                gpu.index: others_use(gpu.memory.used, sum(each.vram.get(gpu.index, 0) for each in running))
                if gpu.memory.others is None
                else gpu.memory.others
                for gpu in status.gpu_devices
            },
        )
        old = self.others.get(worker_id)
        self.others[worker_id] = new
        if old is None or fell(old, new):
            self.capacity += 1

    # Views -------------------------------------------------------------------------------------------------

    def instances_of(self, model_id: int) -> list[ModelInstancePublic]:
        """Return the instances of a model, oldest first."""
        return sorted((i for i in self.instances.values() if i.model_id == model_id), key=lambda i: i.id)

    def file(self, worker_id: int, model: ModelPublic) -> ModelFilePublic | None:
        """Return what is known of the model's files on a worker."""
        id_ = self._file_ids.get(source_key(model), {}).get(worker_id)
        return None if id_ is None else self.files.get(id_)

    def files_of(self, model: ModelPublic) -> list[ModelFilePublic]:
        """Return what all workers know of the model's source, by worker."""
        ids = self._file_ids.get(source_key(model), {})
        return [self.files[id_] for _, id_ in sorted(ids.items()) if id_ in self.files]

    def outdated(self, instance: ModelInstancePublic) -> bool:
        """Tell whether another one is to take the instance's place: its model was changed, or its worker leaves."""
        model = self.models.get(instance.model_id)
        if instance.worker_id is None or model is None:
            return False
        return instance.spec_digest != model.spec_digest or self.leaving(instance)

    def leaving(self, instance: ModelInstancePublic) -> bool:
        """Tell whether the instance is on a worker that is taken out of service, if only with one of its members."""
        some = (self.workers.get(each) for each in instance.worker_ids)
        return any(worker is not None and worker.maintenance for worker in some)

    def silent_at(self, worker_id: int) -> float:
        """Return when the worker counts as silent if it says nothing more."""
        # A little later than that, so that rounding never wakes anybody in the moment before.
        return self.seen[worker_id] + self.limits.heartbeat_loss + 0.001

    def late(self, worker_id: int) -> float:
        """Return the seconds of silence after which a sign of life of the worker is missing."""
        rhythm = self.rhythms.get(worker_id)
        return self.limits.heartbeat_loss if rhythm is None else rhythm.late(self.limits.heartbeat_loss)

    def due(self, instance: ModelInstancePublic) -> float | None:
        """Return when the instance's time in its state is over; None when it may stay."""
        notes = self.notes[instance.id]
        if notes.draining is not None:
            over = notes.draining + instance.drain_seconds + self.limits.slack
            return max(over, self.loaded_at + self.limits.grace)
        allowed = self.allowed(instance)
        if allowed is None:
            return self._next_attempt(instance)
        if instance.state is InstanceState.PENDING:
            return max(notes.since, notes.looked) + allowed
        return max(notes.since + allowed, self.loaded_at + self.limits.grace)

    def _next_attempt(self, instance: ModelInstancePublic) -> float | None:
        """Return when the members of an instance are started again after a failure; None: never by themselves, or not yet."""
        model, members = self.models.get(instance.model_id), instance.members
        if instance.state is not InstanceState.ERROR or not members or not groups.is_over(members):
            return None
        if model is None or not model.restart_on_error or groups.is_final(members):
            return None
        return self.notes[instance.id].since + groups.wait_after(instance.failed_attempts)

    def allowed(self, instance: ModelInstancePublic) -> float | None:
        """Return the seconds that the instance may stay in its state."""
        weights = 0
        if instance.state is InstanceState.STARTING and instance.worker_id is not None:
            model = self.models.get(instance.model_id)
            file = self.file(instance.worker_id, model) if model is not None else None
            weights = file.facts.weight_bytes if file is not None and file.facts is not None else 0
        return time_allowed(instance.state, self.limits.deadlines, weight_bytes=weights)

    def snapshot(self) -> Snapshot:
        """Return the workers with what instances hold there, for the scheduler."""
        return self.fleet.snapshot()

    def _worker(self, worker: WorkerPublic) -> Worker:
        status, others = worker.status, self.others.get(worker.id, Others())
        backends = frozenset(self.versions if (told := worker.catalogue.get("backends")) is None else told)
        kind = self.kinds[worker.id] = kind_of(worker)
        groups = dict.fromkeys(gpu.link_group for gpu in status.gpu_devices if gpu.link_group)
        islands = {name: number for number, name in enumerate(groups)}
        return Worker(
            id=worker.id,
            name=worker.name,
            cluster_id=worker.cluster_id,
            ready=worker.state is WorkerState.READY,
            state_message=worker.state_message
            or ("in maintenance" if worker.state is WorkerState.MAINTENANCE else ""),
            labels=worker.labels,
            kind=kind,
            backends=backends | self.known.served_by_custom if CUSTOM in backends else backends,
            ram_total=status.memory.total,
            ram_others=others.ram,
            ram_reserved=worker.system_reserved.get("ram", 0),
            vram_reserved=worker.system_reserved.get("vram", 0),
            unified_memory=status.memory.is_unified_memory,
            gpus=tuple(
                Gpu(
                    index=gpu.index,
                    uuid=gpu.uuid,
                    name=gpu.name,
                    total=gpu.memory.total,
                    others=others.vram.get(gpu.index, 0),
                    island=islands.get(gpu.link_group),
                )
                for gpu in sorted(status.gpu_devices, key=lambda gpu: gpu.index)
                if not gpu.faults
            ),
        )

    def _set_deadline(self, instance: ModelInstancePublic, notes: Notes) -> None:
        key = ("instance", instance.id)
        due = self.due(instance)
        if due is None:
            self.timers.drop(key)
        else:
            self.timers.put(key, due)
        if instance.state is InstanceState.ANALYZING:
            self.timers.put(("patience", instance.id), notes.since + self.limits.patience)

    def _keep(self, old: ModelInstancePublic | None, new: ModelInstancePublic) -> None:
        """Claim what the instance holds, and release what it held before."""
        if new.worker_id is None:
            self.unplaced.add(new.id)
        else:
            self.unplaced.discard(new.id)
        before, held = () if old is None else holdings_of(old), holdings_of(new)
        if before and held != before:
            self.capacity += 1
            self.fleet.release(new.id)
        for holding in self._holdings(new):
            self.fleet.hold(holding)

    def _holdings(self, instance: ModelInstancePublic) -> list[Holding]:
        """Return what the instance holds, on each of its workers, with how much it would be missed."""
        model = self.models.get(instance.model_id)
        priority, harm = (
            0 if model is None else model.priority,
            int(instance.state is InstanceState.RUNNING),
        )
        return [replace(each, priority=priority, harm=harm) for each in holdings_of(instance)]

    def refused_still(self, instance_id: int) -> bool:
        """Tell whether the instance was refused and nothing has changed since that could help it."""
        parked, instance = self.notes[instance_id].parked, self.instances[instance_id]
        model = self.models.get(instance.model_id)
        if parked is None or model is None or self.fleet.stirred(parked.watch):
            return False
        return parked.file_news == self._file_news.get(source_key(model), 0)

    def refused(self, request: Request, model: ModelPublic) -> Refusal:
        """Return what tells later whether ``request``, refused now, is refused still."""
        return Refusal(self.fleet.watch(request), self._file_news.get(source_key(model), 0))

    def lapsed(self, instance_id: int, now: float) -> bool:
        """Tell whether the instance was promised room and did not get it in time."""
        promise = self.promises.get(instance_id)
        return promise is not None and promise.until <= now

    def _promise(self, instance_id: int, new: Promise | None) -> None:
        """Keep ``new`` in place of what was promised before; others may fit where that was."""
        old = self.promises.pop(instance_id, None)
        if new is not None:
            self.promises[instance_id] = new
            self.timers.put(("promise", instance_id), new.until)
        if old is None:
            return
        if new is None:
            self.timers.drop(("promise", instance_id))
        if new is None or new.holdings != old.holdings:
            for each in old.holdings:
                self.fleet.touch(each.worker_id)

    def park(
        self,
        instance_id: int,
        refusal: Refusal,
        now: float,
        room_of: int | None = None,
        promise: Promise | None = None,
    ) -> None:
        """Note that the instance was refused, whose end would change that, and what room it waits for."""
        if (notes := self.notes.get(instance_id)) is None:
            return
        self._promise(instance_id, promise)
        notes.room_of = room_of
        if room_of is None:
            self.helped.discard(instance_id)
        else:
            self.helped.add(instance_id)
        notes.parked, notes.looked, notes.retry = refusal, now, False
        self._set_deadline(self.instances[instance_id], notes)

    def replace_rows(self, rows: Rows, *, now: float, wall: datetime) -> None:
        """Take in all rows as they are in the database, and forget those that are gone; notes stay.

        ``wall`` is the time of day that belongs to ``now``.
        """
        self._deleted.clear()
        self.peaks.replace(rows.peaks)
        self._forget("models", self.models, rows.models)
        self._forget("model-instances", self.instances, rows.instances)
        self._forget("workers", self.workers, rows.workers)
        self._forget("model-files", self.files, rows.files)
        self._forget("inference-backends", self.backends, rows.backends)
        for backend in rows.backends:
            if self.backends.get(backend.id) != backend:
                self.put_backend(backend)
        for model in rows.models:
            self.put_model(model)
        for instance in rows.instances:
            fresh = instance.id not in self.instances
            self.put_instance(instance, now - _age(wall, instance.state_since))
            if fresh and instance.draining_since is not None:
                self.notes[instance.id].draining = now - _age(wall, instance.draining_since)
                self._set_deadline(instance, self.notes[instance.id])
            if fresh and instance.state is InstanceState.ERROR and instance.worker_id is None:
                self.notes[instance.id].tried = frozenset(worker_print(each) for each in rows.workers)
        for worker in rows.workers:
            fresh = worker.id not in self.workers
            self.put_worker(worker, now)
            if fresh and worker.state is WorkerState.UNREACHABLE and worker.heartbeat_time is not None:
                self.seen[worker.id] = now - _age(wall, worker.heartbeat_time)
        for file in rows.files:
            self.put_file(file)

    def _forget(self, topic: str, known: Iterable[int], rows: Sequence[Record]) -> None:
        for gone in set(known) - {each.id for each in rows}:
            self._drop(topic, gone)


TOPICS = ("models", "model-instances", "workers", "model-files", "inference-backends")


def _progressed(old: ModelInstancePublic, new: ModelInstancePublic) -> bool:
    said = (old.state_message, old.download_progress) != (new.state_message, new.download_progress)
    return said and new.state in _BY_PROGRESS


def _age(wall: datetime, when: datetime) -> float:
    return max(0.0, (wall - when).total_seconds())


def worker_print(worker: WorkerPublic) -> str:
    """Return what must change about a worker before a model that it could not serve is tried there again."""
    catalogue = worker.catalogue
    named = f"{catalogue.get('backends')} {catalogue.get('bundled_models')}"
    return f"{worker.id} {worker.version} {named} {no_containers(worker)}"
