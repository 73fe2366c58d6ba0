"""The hands of one member of an instance that spans workers.

It goes through the life of an engine as :class:`~gpustack.worker.instance.InstanceDriver` does, but waits for the other
members before it starts, ends when one of them fails, and leaves it to the server when all start again.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpustack import __version__
from gpustack.kit.errors import GPUStackError, system_line
from gpustack.kit.net import LOOPBACK, interface_addresses
from gpustack.lifecycle import engine as life
from gpustack.lifecycle import group as groups
from gpustack.plugin import Arrangement, LaunchRequest, Refused
from gpustack.schemas import (
    GroupOrders,
    InstanceMember,
    InstanceState,
    MemberDevice,
    MemberReport,
    MemberState,
    ModelInstancePublic,
)
from gpustack.worker.desk import Installed
from gpustack.worker.groups.greeting import Card, Peer, answering, check
from gpustack.worker.groups.launch import MemberLaunch, arranged, as_seen_by, members_of
from gpustack.worker.instance import InstanceDriver
from gpustack.worker.leftovers import clear
from gpustack.worker.ports import Lease
from gpustack.worker.runners import ray
from gpustack.worker.runners.ending import own_record
from gpustack.worker.workshop import Workshop

log = logging.getLogger(__name__)

_M = MemberState
_S = InstanceState
_STATES = {
    _S.SCHEDULED: _M.ENDED,
    _S.STARTING: _M.STARTING,
    _S.RUNNING: _M.RUNNING,
    _S.ERROR: _M.FAILED,
}
#: A member that had come so far has lost what it held when its worker started anew.
_HELD = (_M.PREPARED, _M.CHECKED, _M.STARTING, _M.RUNNING, _M.UNREACHABLE)


class MemberDriver(InstanceDriver):
    """The member of an instance on this worker, until it is withdrawn."""

    def __init__(self, shop: Workshop, instance: ModelInstancePublic, number: int) -> None:
        super().__init__(shop, as_seen_by(instance, number))
        self._number = number
        #: The attempt that it is in; the server says which one is wanted.
        self._attempt = self._wanted = instance.attempt
        #: How far it has come before its process starts.
        self._stage = _M.PREPARING
        self._final = False
        self._arrangement = Arrangement()
        self._ports: list[Lease] = []
        #: The program and the secret of their Ray, where they have one.
        self._ray = ""
        self._orders = GroupOrders(token="")
        self._changed = asyncio.Event()

    def suits(self, name: str, member: InstanceMember | None) -> bool:
        """Tell whether it drives what the server now has under its number, and as the same member."""
        return self.instance.name == name and member is not None and member.number == self._number

    @property
    def leads(self) -> bool:
        """Tell whether it is the member that answers requests."""
        return self._number == 0

    @property
    def _mine(self) -> InstanceMember:
        return self.instance.members[self._number]

    def update(self, instance: ModelInstancePublic) -> None:
        """Take in how the instance and its other members are now."""
        self.instance = as_seen_by(instance, self._number)
        self._changed.set()
        if self._begun:
            self._follow()

    def leave(self) -> None:
        """End without a word: the instance was placed elsewhere, and without the others it answers nobody."""
        self._left = True
        self.withdraw()

    def report_again(self) -> None:
        """Tell the server how things are: it had lost sight of this worker."""
        if self._begun:
            self._report(life.Report(self.life.state, self._last_message))

    def _follow(self) -> None:
        """Do what follows from how the others are."""
        one = self.instance
        if one.draining_since is not None:
            self._drain_with(one)
        elif one.attempt != self._wanted:
            self._wanted = one.attempt
            self._post(None, life.Halted())
            self._post(None, life.Assigned())
        elif groups.is_broken(one.members):
            # Whatever its life is now: an adoption or a start may be in the queue, and without either nothing follows.
            self._post(None, life.Halted())

    def _drain_with(self, one: ModelInstancePublic) -> None:
        """Let clients of the leader leave first; the others end after it."""
        if self.life.draining:
            return
        if self.leads:
            self._post(None, life.Draining(self._time_to_drain()))
        elif one.members[0].state in (_M.ENDED, _M.FAILED):
            self._post(None, life.Draining(0.0))

    async def _handle(self, event: life.Event) -> None:
        if isinstance(event, life.Assigned):
            self._attempt, self._stage, self._final = self._wanted, _M.PREPARING, False
        if isinstance(event, life.Failed):
            self._final = not event.again
        await super()._handle(event)

    # How it begins ------------------------------------------------------------------------------------

    async def _begin(self) -> None:
        """Find out how things stand: adopt what runs of this attempt, end what runs of another, start, or say so."""
        generation, config, one = self._generation, self._shop.config, self.instance
        record = await asyncio.to_thread(own_record, config.run_dir, one.id, one.name, grace=config.grace)
        same = record is not None and record.attempt == one.attempt
        engine = await self._adopt(record) if record is not None and same else None
        if record is not None and not same:
            await clear(config.run_dir, one.id, grace=config.grace)
        self._model = await self._shop.model_if_any(one, self._model)
        # Who starts again, and when, is decided for all members at once.
        self.life = replace(self.life, restarts=False)
        if engine is not None:
            self._ports = [self._shop.group_ports.adopt(port, one.name) for port in self._mine.ports]
            self._post(generation, life.Adopted())
            self._start("engine", self._watch(engine))
        elif self._mine.state is _M.FAILED:
            self.life = replace(self.life, state=_S.ERROR)
            self._last_message = self._mine.state_message
        elif groups.is_broken(one.members):
            self._report(life.Report(_S.SCHEDULED))
        elif same or self._mine.state in _HELD:
            self._post(None, life.Exited("went with a restart of its worker"))
        elif self._model is not None:
            self._post(None, life.Assigned())
        self._begun = True
        self._follow()

    # How it starts ------------------------------------------------------------------------------------

    async def _before_start(self, installed: Installed) -> None:
        """Get ports, wait for the others, check that all reach each other, and wait for the turn.

        Raises GPUStackError with one line that says what is in the way.
        """
        instance, model = self.instance, self._model
        assert model is not None
        if installed.config.run_command:
            raise Refused(
                f"{instance.backend} {installed.version} is run by a command of its own (run_command), which divides "
                "nothing over workers; give the model another version, or --across-workers false"
            )
        asked = LaunchRequest(
            instance_name=instance.name,
            model_name=model.name,
            model=installed.facts,
            command=installed.command,
            version=installed.version,
            host=LOOPBACK,
            port=0,
            model_path=installed.facts.path,
            parameters=tuple(model.backend_parameters),
            members=members_of(instance),
            member=self._number,
        )
        self._arrangement = await arranged(installed.plugin, installed.backend, asked)
        if self._arrangement.ray and installed.container is not None:
            raise Refused("members come together by Ray as processes only; have them run without containers")
        if self._arrangement.ray:
            self._ray = await self._shop.desk.ray(installed.command, self._say)
            self._orders = await self._shop.fetch_group(instance.id)
        self._free_ports()
        self._take_ports()
        self._go_on(_M.PREPARED, "waits for the other members")
        card = Card(
            instance=instance.id,
            attempt=self._attempt,
            number=self._number,
            worker=self._mine.worker_name,
            engine=instance.backend,
            version=installed.version,
            gpustack=__version__,
        )
        async with answering(card, self._ports):
            await self._until(groups.may_check)
            await check(card, self._peers())
            self._go_on(_M.CHECKED, "waits for the other members")
            await self._until(groups.all_checked)
        await self._until(lambda members: groups.may_start(members, self._number, self._arrangement))

    def _take_ports(self) -> None:
        """Take the engine's own ports first, then those of a Ray: the first on a host has the ones of the options."""
        pool, name = self._shop.group_ports, self.instance.name
        self._ports = pool.take_many(self._arrangement.ports, name)
        if not self._arrangement.ray:
            return
        known = {**self._orders.ray_ports, **self._shop.config.ray_ports}
        wanted = [known[each] for each in self._ray_names if each in known]
        first = pool.take_these(wanted, name) if len(wanted) == len(self._ray_names) else None
        self._ports += first or pool.take_many(len(self._ray_names), name)
        self._ports += pool.take_many(ray.worker_ports(len(self.instance.gpu_indexes)), name)

    @property
    def _ray_names(self) -> tuple[str, ...]:
        return (*ray.HEAD, *ray.NODE) if self.leads else ray.NODE

    def _peers(self) -> list[Peer]:
        return [
            Peer(each.number, each.worker_name, each.host, tuple(each.ports))
            for each in self.instance.members
            if each.number != self._number
        ]

    def _go_on(self, stage: MemberState, message: str) -> None:
        self._stage = stage
        self._report(life.Report(_S.INITIALIZING, message))

    async def _until(self, holds: Callable[[list[InstanceMember]], bool]) -> None:
        """Wait for the others. An attempt that ends meanwhile ends this as well."""
        while not (self.instance.attempt == self._attempt and holds(self.instance.members)):
            self._changed.clear()
            await self._changed.wait()

    async def _plan(self, port: int) -> Any:
        """Return what to run, with the addresses of all members; the ports that were held for it are free from now on."""
        assert self._installed is not None
        assert self._model is not None
        own = self._arrangement.ports
        launch = MemberLaunch(members_of(self.instance, own), self._number)
        self._folder = ""
        if self._arrangement.ray:
            self._folder = str(ray.folder_of(self._orders.token, self.instance.name, self._attempt))
            launch = replace(launch, around=functools.partial(ray.around, node=await self._node()))
        todo = await self._shop.desk.plan(
            self._installed, self.instance, self._model, port=port, launch=launch
        )
        for lease in self._ports:
            lease.let_go()
        return todo

    async def _node(self) -> ray.Node:
        """Return the node of Ray that runs here. Raises GPUStackError when its token cannot be written."""
        one, own, ports = self.instance, self._arrangement.ports, [each.port for each in self._ports]
        token_file = self._shop.config.scratch(one.id) / "ray_token"
        try:
            await asyncio.to_thread(ray.write_token, token_file, self._orders.token)
        except OSError as error:
            raise GPUStackError(system_line(error)) from error
        names, leader = self._ray_names, one.members[0]
        return ray.Node(
            ray=self._ray,
            head=self.leads,
            host=self._shop.config.advertise_ip,
            address=f"{leader.host}:{leader.ports[own]}",
            ports=dict(zip(names, ports[own:], strict=False)),
            worker_ports=ports[own + len(names) :],
            nodes=len(one.members),
            gpus=len(one.gpu_indexes),
            folder=str(Path(self._folder) / "ray"),
            token_file=str(token_file),
        )

    async def _kill(self) -> None:
        await super()._kill()
        self._free_ports()

    def _free_ports(self) -> None:
        for lease in self._ports:
            lease.free()
        self._ports = []

    # What it tells ------------------------------------------------------------------------------------

    def _report(self, report: life.Report, **more: Any) -> None:
        state = _STATES.get(report.state, self._stage)
        config = self._shop.config
        said = MemberReport(
            number=self._number,
            attempt=self._attempt,
            state=_M.ENDED if report.ended else state,
            final=self._final,
            host=config.advertise_ip,
            interface=_interface(config.advertise_ip),
            ports=[each.port for each in self._ports],
            devices=self._devices(),
        )
        super()._report(report, member=said, **more)

    def _devices(self) -> list[MemberDevice]:
        wanted = self.instance.gpu_indexes
        return [
            MemberDevice(
                index=each.index,
                uuid=each.uuid,
                vendor=each.vendor,
                name=each.name,
                type=each.type,
                memory_total=each.memory_total,
            )
            for each in self._shop.desk.devices
            if each.index in wanted
        ]


def _interface(address: str) -> str:
    """Return the network interface that has an address; empty where none has, as behind a NAT."""
    return next((name for name, some in interface_addresses().items() if address in some), "")
