"""Writes decisions to the database: one transaction each, guarded by the state the decision was made on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import groupby
from typing import Any, TypeVar

from gpustack.db import Store, Transaction
from gpustack.kit.errors import Conflict, NotFound
from gpustack.kit.text import random_suffix
from gpustack.lifecycle import group as groups
from gpustack.schemas import (
    Claim,
    InstanceMember,
    InstanceMemory,
    InstanceState,
    ModelInstancePublic,
    WorkerState,
)
from gpustack.server.reconcile.actions import (
    Action,
    Again,
    Analyze,
    Ask,
    Create,
    Drain,
    Fail,
    Finish,
    LoseWorker,
    Move,
    Park,
    Restart,
    ReturnWorker,
    Scale,
    Schedule,
    SetCategories,
    SetReady,
)
from gpustack.server.reconcile.notes import Notes
from gpustack.server.reconcile.state import State

log = logging.getLogger(__name__)

T = TypeVar("T")

_S = InstanceState

#: The columns of an instance that belongs to no worker.
_UNPLACED: dict[str, Any] = {
    "worker_id": None,
    "pid": None,
    "port": None,
    "resolved_path": "",
    "backend": "",
    "backend_version": "",
    "computed_resource_claim": Claim(),
    "memory": InstanceMemory(),
    "gpu_indexes": [],
    "download_progress": 0.0,
    "members": [],
}


class Execute:
    """The hands. What is written is taken into the state at once; the feed's event then says the same again."""

    def __init__(self, store: Store, state: State, clock: Callable[[], float]) -> None:
        self._store = store
        self._state = state
        self._clock = clock
        self._expected: dict[int, InstanceState] = {}

    async def run(self, actions: Sequence[Action]) -> None:
        """Carry out ``actions``, which were decided on the state as it is now.

        When somebody else is faster with one of them, its row is read again and nothing is raised: the next
        decision knows better.
        """
        # Events come in while we write; what was decided holds only for the states it was decided on.
        self._expected = {each.id: each.state for each in self._state.instances.values()}
        for is_schedule, group in groupby(actions, lambda each: isinstance(each, Schedule)):
            if is_schedule:
                await self._schedule([each for each in group if isinstance(each, Schedule)])
                continue
            for action in group:
                await self._one(action)

    async def _one(self, action: Action) -> None:
        try:
            await self._do(action)
        except (Conflict, NotFound) as error:
            log.debug("%s came too late: %s", action, error)
            await self._reread(action)

    async def _do(self, action: Action) -> None:
        match action:
            case Create():
                await self._create(action)
            case Scale():
                await self._scale(action)
            case Drain():
                await self._drain(action)
            case Finish():
                await self._finish(action)
            case Analyze():
                await self._analyze(action)
            case Park():
                await self._park(action)
            case Fail():
                await self._fail(action)
            case Restart():
                await self._restart(action)
            case Move():
                await self._update(action.instance_id, state=action.state, state_message=action.message)
            case Again():
                await self._again(action)
            case LoseWorker():
                await self._lose(action)
            case ReturnWorker():
                await self._return(action)
            case SetReady():
                self._state.put_model(await self._store.models.set_ready(action.model_id, action.count))
            case SetCategories():
                changed = await self._store.models.set_facts(
                    action.model_id, categories=list(action.categories)
                )
                self._state.put_model(changed)
            case Ask() | Schedule():
                raise AssertionError(
                    "questions are not for the database, and placements are written together"
                )

    async def _create(self, action: Create) -> None:
        model = _row(self._state.models, action.model_id)
        async with self._store.transaction() as tx:
            made = [
                await tx.instances.create(model, f"{model.name}-{random_suffix()}")
                for _ in range(action.count)
            ]
        for each in made:
            log.info("instance %s: created", each.name)
            self._state.put_instance(each, self._clock())

    async def _scale(self, action: Scale) -> None:
        changed = await self._store.models.scale(action.model_id, action.replicas, expect=action.before)
        log.info(
            "model %s: scaled from %d to %d, %s", changed.name, action.before, action.replicas, action.why
        )
        self._state.put_model(changed)

    async def _drain(self, action: Drain) -> None:
        name = _row(self._state.instances, action.instance_id).name
        left = await self._store.instances.drain(
            action.instance_id,
            why=action.why,
            seconds=action.seconds,
            expect_state=self._expected[action.instance_id],
        )
        if left is None:
            self._state.drop_instance(action.instance_id)
        else:
            self._state.put_instance(left, self._clock())
        log.info("instance %s: %s, %s", name, "removed" if left is None else "drains", action.why)
        if (notes := self._state.notes.get(action.for_instance or 0)) is not None:
            notes.parked = None  # what it waits for is to be said anew

    async def _finish(self, action: Finish) -> None:
        name = _row(self._state.instances, action.instance_id).name
        await self._store.instances.delete(action.instance_id)
        log.info("instance %s: deleted, %s", name, action.why)
        self._state.drop_instance(action.instance_id)

    async def _analyze(self, action: Analyze) -> None:
        instance = _row(self._state.instances, action.instance_id)
        model = _row(self._state.models, instance.model_id)
        async with self._store.transaction() as tx:
            changed = instance
            if self._expected[instance.id] is not _S.ANALYZING or action.message:
                changed = await tx.instances.update(
                    instance.id,
                    expect_state=self._expected[instance.id],
                    state=_S.ANALYZING,
                    state_message=action.message or "reading the model's files",
                )
            files = [
                await tx.model_files.request(worker_id, model, action.revision)
                for worker_id in action.request
            ]
        for each in files:
            self._state.put_file(each)
        self._state.put_instance(changed, self._clock())
        if (notes := self._state.notes.get(instance.id)) is not None:
            notes.asked.update(action.workers)

    async def _schedule(self, actions: Sequence[Schedule]) -> None:
        """Write placements together. Those that came too late are decided anew, and so is who waits for their room."""
        wanted = {each.placed.instance_id: _columns(each) for each in actions}
        given = await self._store.instances.schedule(wanted, expect=self._expected)
        for changed in given:
            self._state.put_instance(changed, self._clock())
            log.info(
                "instance %s: scheduled on worker %s with %s %s",
                changed.name,
                changed.worker_name,
                changed.backend,
                changed.backend_version,
            )
        late = wanted.keys() - {each.id for each in given}
        for action in actions:
            if action.placed.instance_id in late:
                log.debug("%s came too late", action)
                for holding in action.placed.holdings():
                    await self._reread_worker(holding.worker_id)
                await self._reread_instance(action.placed.instance_id)
                for holding in action.placed.holdings():
                    self._state.fleet.touch(holding.worker_id)

    async def _park(self, action: Park) -> None:
        instance = _row(self._state.instances, action.instance_id)
        if instance.state is not _S.PENDING or instance.state_message != action.message:
            await self._update(instance.id, state=_S.PENDING, state_message=action.message)
            log.info("instance %s: pending, %s", instance.name, action.message.splitlines()[0])
        self._state.park(instance.id, action.refusal, self._clock(), action.room_of, action.promise)

    async def _fail(self, action: Fail) -> None:
        changed = await self._update(
            action.instance_id, state=_S.ERROR, state_message=action.message, spec_digest=action.spec
        )
        log.warning("instance %s: error, %s", changed.name, action.message, exc_info=action.bug)
        if (notes := self._state.notes.get(action.instance_id)) is not None:
            notes.tried, notes.retry = action.tried, False

    async def _restart(self, action: Restart) -> None:
        changed = await self._update(
            action.instance_id, state=_S.PENDING, state_message=action.message, **_UNPLACED
        )
        log.warning("instance %s: %s", changed.name, action.message)
        if (notes := self._state.notes.get(action.instance_id)) is not None:
            avoid = {action.avoid} if action.avoid is not None else set()
            self._state.notes[action.instance_id] = Notes(since=notes.since, avoid=notes.avoid | avoid)

    async def _again(self, action: Again) -> None:
        """Begin the next attempt of members that have all ended, by what their row says at the moment of writing."""
        async with self._store.transaction() as tx:
            instance = await tx.instances.locked(action.instance_id)
            if instance.state is not _S.ERROR or not groups.is_over(instance.members):
                raise Conflict(f"instance {instance.name} is not over")
            before = groups.of(instance)
            changed = await tx.instances.update(
                instance.id,
                expect_state=_S.ERROR,
                pid=None,
                port=None,
                restart_count=instance.restart_count + 1,
                last_restart_time=datetime.now(UTC),
                **groups.columns(before, groups.again(before)),
            )
        log.warning("instance %s: its members start again, attempt %d", changed.name, changed.attempt)
        self._state.put_instance(changed, self._clock())

    async def _lose(self, action: LoseWorker) -> None:
        worker = _row(self._state.workers, action.worker_id)
        message = f"worker {worker.name} is unreachable: {action.message}"
        async with self._store.transaction() as tx:
            lost = await tx.workers.set_state(worker.id, WorkerState.UNREACHABLE, action.message)
            changed = [
                await tx.instances.update(
                    each,
                    expect_state=self._expected[each],
                    state=_S.UNREACHABLE,
                    state_message=message,
                    **await self._lost_members(tx, each, worker.id),
                )
                for each in action.instances
            ]
        log.warning("worker %s: unreachable, %s", worker.name, action.message)
        self._state.put_worker(lost, self._clock())
        for instance in changed:
            self._state.put_instance(instance, self._clock())

    async def _lost_members(self, tx: Transaction, instance_id: int, worker_id: int) -> dict[str, Any]:
        instance = self._state.instances.get(instance_id)
        if instance is None or not instance.members:
            return {}
        return {"members": list(groups.lost(groups.of(await tx.instances.locked(instance_id)), [worker_id]))}

    async def _return(self, action: ReturnWorker) -> None:
        back = await self._store.workers.set_state(action.worker_id, WorkerState.READY, "")
        log.info("worker %s: ready again", back.name)
        self._state.put_worker(back, self._clock())

    async def _update(self, instance_id: int, **columns: Any) -> ModelInstancePublic:
        changed: ModelInstancePublic = await self._store.instances.update(
            instance_id, expect_state=self._expected[instance_id], **columns
        )
        self._state.put_instance(changed, self._clock())
        return changed

    async def _reread(self, action: Action) -> None:
        """Bring what the action was about up to date, or forget it when it is gone."""
        match action:
            case Create(model_id) | Scale(model_id) | SetReady(model_id) | SetCategories(model_id):
                await self._reread_model(model_id)
            case LoseWorker():
                await self._reread_worker(action.worker_id)
                for each in action.instances:
                    await self._reread_instance(each)
            case ReturnWorker():
                await self._reread_worker(action.worker_id)
            case Analyze():
                for worker_id in action.request:
                    await self._reread_worker(worker_id)
                await self._reread_instance(action.instance_id)
            case Drain() | Finish() | Park() | Fail() | Restart() | Move() | Again():
                await self._reread_instance(action.instance_id)
            case Ask() | Schedule():
                pass

    async def _reread_model(self, model_id: int) -> None:
        try:
            self._state.put_model(await self._store.models.get(model_id))
        except NotFound:
            self._state.models.pop(model_id, None)

    async def _reread_worker(self, worker_id: int) -> None:
        try:
            self._state.put_worker(await self._store.workers.get(worker_id), self._clock())
        except NotFound:
            self._state.drop_worker(worker_id)

    async def _reread_instance(self, instance_id: int) -> None:
        try:
            self._state.put_instance(await self._store.instances.get(instance_id), self._clock())
        except NotFound:
            self._state.drop_instance(instance_id)


def _members(action: Schedule) -> list[InstanceMember]:
    """Return the members of an instance that is placed on several workers, the leader first."""
    placed = action.placed
    if not placed.followers:
        return []
    return [
        InstanceMember(
            number=number,
            worker_id=each.worker_id,
            computed_resource_claim=Claim(ram=each.ram, vram=dict(each.vram)),
            gpu_indexes=sorted(each.vram),
            resolved_path=path,
        )
        for number, (each, path) in enumerate(
            zip(placed.holdings(), (action.path, *action.paths), strict=True)
        )
    ]


def _columns(action: Schedule) -> dict[str, Any]:
    placed = action.placed
    return {
        "state_message": action.note,
        "worker_id": placed.worker_id,
        "backend": placed.way.backend,
        "backend_version": placed.way.version,
        "resolved_path": action.path,
        "resolved_revision": action.revision,
        "computed_resource_claim": Claim(ram=placed.ram, vram=dict(placed.vram), pieces=dict(placed.pieces)),
        "memory": action.memory,
        "gpu_indexes": sorted(placed.vram),
        "spec_digest": action.spec,
        "members": _members(action),
    }


def _row(rows: Mapping[int, T], id: int) -> T:  # noqa: A002
    """Return a row, which may have been deleted since the decision."""
    if (row := rows.get(id)) is None:
        raise NotFound(f"{id} was deleted meanwhile")
    return row
