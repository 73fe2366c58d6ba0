"""All instances of this worker: follows what the server wants, and makes it so."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from pydantic import ValidationError

from gpustack.kit.backoff import Backoff
from gpustack.kit.tasks import Tasks
from gpustack.schemas import (
    Event,
    EventType,
    InstanceMember,
    InstanceReport,
    InstanceState,
    MemberState,
    ModelInstancePublic,
)
from gpustack.worker.groups.driver import MemberDriver
from gpustack.worker.instance import InstanceDriver
from gpustack.worker.measuring import GpuMemory
from gpustack.worker.memory import Memory, forget_all_but, remember
from gpustack.worker.outbox import Outbox
from gpustack.worker.runners.ending import end_engines, sweep_containers
from gpustack.worker.runners.logfile import cap, prune
from gpustack.worker.runners.records import read_records
from gpustack.worker.workshop import Workshop

log = logging.getLogger(__name__)

#: In these states the server has not placed the instance, or is about to place it elsewhere.
_NOT_PLACED = frozenset({InstanceState.PENDING, InstanceState.ANALYZING})

#: Seconds in which an answer and the event of the same change are both here.
_SETTLE = 0.5


def newest(old: InstanceReport, new: InstanceReport) -> InstanceReport:
    """Join a report that was not sent yet with a newer one: a restart stays told, and the error before it."""
    joined: dict[str, object] = {}
    if old.restarted and not new.restarted:
        joined = {"restarted": True, "restart_count": old.restart_count}
    error = new.missed_error
    if error is None:
        error = old.state_message if old.state is InstanceState.ERROR and new.restarted else old.missed_error
    if error is not None and (new.restarted or old.restarted):
        joined["missed_error"] = error
    if new.peak is None and old.peak is not None and not new.restarted:
        joined["peak"] = old.peak
    return new.model_copy(update=joined)


class Instances:
    """The drivers of this worker's instances, by instance id.

    They live on while the server is away, and over a new registration.
    """

    def __init__(self, shop: Workshop, outbox: Outbox[InstanceReport]) -> None:
        self._shop = shop
        self._outbox = outbox
        self._drivers: dict[int, InstanceDriver] = {}
        self._ending: dict[int, asyncio.Task[None]] = {}
        #: Those that were placed elsewhere while this worker was away, and have clients still.
        self._leaving: dict[int, InstanceDriver] = {}
        #: What the server said last of each.
        self._latest: dict[int, ModelInstancePublic] = {}
        #: How long to wait with a report after one that the server refused.
        self._refused: dict[int, Backoff] = {}
        self._tasks = Tasks("instances")

    async def follow(self, events: AsyncIterator[Event], worker_id: int, on_open: Callable[[], None]) -> None:
        """Do what the watch of this worker's instances says, for as long as it goes.

        ``on_open`` is called at the end of each replay, when what is recorded but not wanted was dealt with.
        """
        named: set[int] = set()
        async for event in events:
            if event.type is EventType.HEARTBEAT:
                await self._compare(named)
                on_open()
            elif event.type is EventType.DELETED:
                named.discard(event.id)
                # What was placed elsewhere, or is only missing in a replay, is deleted for this watch alone.
                some = (event.data, *event.data.get("members", ()))
                mine = any(each.get("worker_id") == worker_id for each in some)
                (self.withdraw if mine else self._leave)(event.id)
            else:
                (named.add if self._placed(event, worker_id) else named.discard)(event.id)

    def withdraw(self, instance_id: int) -> None:
        """End the engine of an instance that is gone."""
        if (driver := self._taken(instance_id)) is not None:
            driver.withdraw()

    def _leave(self, instance_id: int) -> None:
        """Let the engine end, once its clients have left, of an instance that is no longer this worker's.

        It was replaced while this worker was away: whom it still serves comes by ways that were not cut.
        """
        if (driver := self._taken(instance_id)) is not None:
            self._leaving[instance_id] = driver
            driver.leave()

    def _taken(self, instance_id: int) -> InstanceDriver | None:
        """Return the driver of an instance, which is forgotten with all that was to be told of it."""
        driver = self._drivers.pop(instance_id, None)
        if driver is not None:
            self._outbox.forget(instance_id)
            self._latest.pop(instance_id, None)
            self._refused.pop(instance_id, None)
        return driver

    def log_of(self, instance_id: int) -> Path | None:
        """Return the log of an instance, also before it exists; None for one that is not here."""
        driver = self._drivers.get(instance_id)
        return None if driver is None else driver.log_path

    def lives(self, instance_id: int) -> bool:
        """Tell whether an instance has, or is getting, a process."""
        driver = self._drivers.get(instance_id)
        return driver is not None and not driver.resting

    def serving(self) -> list[ModelInstancePublic]:
        """Return the instances whose engines answer."""
        return [
            latest
            for number, driver in self._drivers.items()
            if driver.serves
            and driver.leads
            and (latest := self._latest.get(number)) is not None
            and latest.port
        ]

    async def tend_logs(self, *, every: float = 30.0) -> None:
        """Keep the logs of running engines from growing without end; looks at them every so many seconds."""
        while True:
            await asyncio.sleep(every)
            for driver in list(self._drivers.values()):
                await asyncio.to_thread(cap, driver.log_path)

    async def measure(self, gpu_memory: Callable[[], GpuMemory], *, every: float) -> None:
        """Measure what engines take, every so many seconds: nothing tells when they take more.

        ``gpu_memory`` returns what the drivers said last, in bytes by instance.
        """
        while True:
            await asyncio.sleep(every)
            vram = gpu_memory()
            for number, driver in list(self._drivers.items()):
                await driver.measure(vram.get(number, 0))

    async def stop(self) -> None:
        """Stop driving; engines go on running."""
        await self._tasks.stop()

    def _placed(self, event: Event, worker_id: int) -> bool:
        """Make it so; return whether the instance is, or may be, this worker's."""
        try:
            instance = ModelInstancePublic.model_validate(event.data)
        except ValidationError as error:
            log.warning(
                "instance %d: the server describes it in a way that is not understood: %s", event.id, error
            )
            return True  # a newer server's, perhaps: its engine serves on as it is
        if worker_id not in instance.worker_ids or instance.state in _NOT_PLACED:
            self._leave(instance.id)
            return False
        driver = self._drivers.get(instance.id)
        member = instance.member_on(worker_id)
        if driver is not None and not driver.suits(instance.name, member):
            # Restored data of the server may give a number to another instance.
            self.withdraw(instance.id)
            driver = None
        self._latest[instance.id] = instance
        if driver is not None and driver.life.state is instance.state:
            self._refused.pop(instance.id, None)
        if driver is None:
            # One that has drained is not taken up again while it waits for the others.
            if member is None or instance.draining_since is None or member.state is not MemberState.ENDED:
                self._drive(instance, member)
        elif member is not None:
            driver.update(instance)
            if instance.state is InstanceState.UNREACHABLE:
                driver.report_again()
        elif instance.draining_since is not None:
            driver.drain(instance)
        elif instance.state is InstanceState.UNREACHABLE or (
            # The server gave up on an engine that answers after all.
            instance.state is InstanceState.ERROR and driver.serves
        ):
            driver.report_again()
        elif instance.state is InstanceState.SCHEDULED and driver.resting:
            self._tasks.start(f"{instance.name} again", self._assign_again(driver, instance))
        return True

    def refused(self, instance_id: int) -> None:
        """Say again how an instance is, after a while and if it is still here: the server refused to hear it.

        It was about to change the instance itself. When it took it away, the watch tells.
        """
        if (driver := self._drivers.get(instance_id)) is not None:
            wait = self._refused.setdefault(instance_id, Backoff(first=_SETTLE, limit=30.0))
            self._tasks.start(f"{driver.instance.name} refused", self._say_again(driver, wait.next()))

    async def _say_again(self, driver: InstanceDriver, seconds: float) -> None:
        await asyncio.sleep(seconds)
        number = driver.instance.id
        if self._drivers.get(number) is driver and not self._outbox.pending(number):
            driver.report_again()

    async def _assign_again(self, driver: InstanceDriver, instance: ModelInstancePublic) -> None:
        """Start a failed instance afresh, if the server still says so once it knows of the failure."""
        latest = self._latest.get(instance.id)
        while self._outbox.pending(instance.id):
            await asyncio.sleep(_SETTLE)
        await asyncio.sleep(_SETTLE)
        if self._latest.get(instance.id) is latest and self._drivers.get(instance.id) is driver:
            driver.assign(instance)

    def _drive(self, instance: ModelInstancePublic, member: InstanceMember | None) -> None:
        if (earlier := self._leaving.get(instance.id)) is not None:
            earlier.withdraw()  # it came back here, and waits for the memory of the engine before
        driver = self._drivers[instance.id] = (
            InstanceDriver(self._shop, instance)
            if member is None
            else MemberDriver(self._shop, instance, member.number)
        )
        before = self._ending.get(instance.id)
        task = self._tasks.start(instance.name, self._run(driver, before))
        self._ending[instance.id] = task
        task.add_done_callback(lambda ended: self._forget(instance.id, ended))

    async def _run(self, driver: InstanceDriver, before: asyncio.Task[None] | None) -> None:
        """Run the driver once an earlier one of the same instance has ended its engine."""
        if before is not None:
            await asyncio.wait([before])
        await driver.run()
        await asyncio.to_thread(
            shutil.rmtree, self._shop.config.scratch(driver.instance.id), ignore_errors=True
        )
        await asyncio.to_thread(remember, self._shop.config.run_dir, driver.instance.id, Memory())
        in_use = {each.log_path for each in self._drivers.values()}
        await asyncio.to_thread(prune, self._shop.config.log_dir, in_use=in_use)

    def _forget(self, instance_id: int, task: asyncio.Task[None]) -> None:
        if self._ending.get(instance_id) is task:
            del self._ending[instance_id]
            # It was not withdrawn from outside when its own model was gone, or when it failed.
            self._drivers.pop(instance_id, None)
            self._leaving.pop(instance_id, None)

    async def _compare(self, named: set[int]) -> None:
        """End what is driven or recorded and not wanted."""
        for instance_id in set(self._drivers) - named:
            self._leave(instance_id)
        run_dir = self._shop.config.run_dir
        await asyncio.to_thread(forget_all_but, run_dir, named | self._ending.keys())
        records = await asyncio.to_thread(read_records, run_dir)
        kept = named | self._ending.keys()
        orphans = [record for record in records if record.instance_id not in kept]
        for record in orphans:
            log.info("instance %s is not wanted any more: ending its engine", record.instance_name)
        await asyncio.to_thread(end_engines, run_dir, orphans, grace=self._shop.config.grace)
        left = await asyncio.to_thread(read_records, run_dir)
        await asyncio.to_thread(
            sweep_containers, run_dir, keep=kept | {record.instance_id for record in left}
        )
