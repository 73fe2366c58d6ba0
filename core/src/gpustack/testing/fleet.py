"""Workers that are not there: a fleet of any size, described in YAML. For tests, simulations and demos.

    workers:
      - name: big
        count: 100
        cores: 128
        ram: 1TiB
        labels: {zone: a}
        gpus:
          - {name: NVIDIA H100, memory: 80GiB, count: 8, linked: 8, nodes: 2}
      - {name: plain, ram: 64GiB}

    for worker in fleet(path_or_text):
        worker.name, worker.registration(), worker.status, worker.public(1)

Of ``count`` workers the names are ``big-0``, ``big-1``…; ``gpus`` has what :mod:`gpustack.testing.fakes.gpus` knows of a
device. ``system``, ``machine``, ``used`` (of the RAM), ``reserved_ram``, ``reserved_vram``, ``backends`` and ``cluster_id`` may be given.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any
from uuid import NAMESPACE_DNS, uuid5

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from gpustack.kit.text import GIB, parse_size
from gpustack.schemas import (
    CpuStatus,
    MemoryStatus,
    WorkerPublic,
    WorkerRegistration,
    WorkerState,
    WorkerStatus,
)
from gpustack.schemas.workers import ABILITIES, MEMBERS
from gpustack.testing.fakes.described import described, understood
from gpustack.testing.fakes.gpus import Entry, devices_of
from gpustack.worker.gpus import gpu_status

Size = Annotated[int, BeforeValidator(parse_size)]


class _Workers(BaseModel):
    """One entry: a number of equal workers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, max_length=100)
    count: int | None = Field(default=None, ge=0, le=1_000_000)
    cores: int = Field(default=16, ge=1)
    ram: Size = Field(default=64 * GIB, gt=0)
    used: Size = 0
    reserved_ram: Size = 2 * GIB
    reserved_vram: Size = GIB
    labels: dict[str, str] = {}
    backends: tuple[str, ...] = ()
    cluster_id: int = 1
    system: str = "Linux"
    machine: str = "x86_64"
    gpus: tuple[Entry, ...] = ()

    def names(self) -> Iterator[str]:
        """Return the names of its workers."""
        if self.count is None:
            return iter((self.name,))
        return (f"{self.name}-{number}" for number in range(self.count))


class _Fleet(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    workers: tuple[_Workers, ...] = ()

    @field_validator("workers")
    @classmethod
    def _apart(cls, workers: tuple[_Workers, ...]) -> tuple[_Workers, ...]:
        seen: set[str] = set()
        for name in (name for each in workers for name in each.names()):
            if name in seen:
                raise ValueError(f"two workers are called {name}; give each entry a name of its own")
            seen.add(name)
        return workers


@dataclass(frozen=True, slots=True)
class FakeWorker:
    """A worker as it would describe itself. ``number`` counts those of a fleet from 0."""

    number: int
    name: str
    status: WorkerStatus
    _entry: _Workers

    @property
    def address(self) -> str:
        """An address of its own, in a network that is nobody's."""
        low = self.number + 1
        return f"10.{low >> 16 & 255}.{low >> 8 & 255}.{low & 255}"

    def registration(self, **more: Any) -> WorkerRegistration:
        """Return what it says when it joins, but for ``more``."""
        values: dict[str, Any] = {
            "name": self.name,
            "hostname": self.name,
            "ip": self.address,
            "port": 10150,
            "door_token": f"the-door-token-of-{self.name}",
            "worker_uuid": self.uuid,
            "version": "0.1.0",
            "labels": self._labels,
            "system_reserved": self._reserved,
            "status": self.status,
            "catalogue": self._catalogue,
        }
        return WorkerRegistration.model_validate({**values, **more})

    def public(self, worker_id: int, **more: Any) -> WorkerPublic:
        """Return it as a server shows it that has taken it in as number ``worker_id``, but for ``more``."""
        now = datetime(2026, 1, 1, tzinfo=UTC)
        values: dict[str, Any] = {
            "id": worker_id,
            "created_at": now,
            "updated_at": now,
            "heartbeat_time": now,
            "name": self.name,
            "ip": self.address,
            "port": 10150,
            "cluster_id": self._entry.cluster_id,
            "worker_uuid": self.uuid,
            "version": "0.1.0",
            "state": WorkerState.READY,
            "labels": self._labels,
            "system_reserved": self._reserved,
            "status": self.status,
            "catalogue": self._catalogue,
        }
        return WorkerPublic.model_validate({**values, **more})

    @property
    def uuid(self) -> str:
        """Its identity, the same for the same name."""
        return str(uuid5(NAMESPACE_DNS, self.name))

    @property
    def _labels(self) -> dict[str, str]:
        entry = self._entry
        mine = {"os": entry.system.lower(), "arch": entry.machine, "worker-name": self.name}
        return {**mine, **entry.labels}

    @property
    def _reserved(self) -> dict[str, int]:
        return {"ram": self._entry.reserved_ram, "vram": self._entry.reserved_vram}

    @property
    def _catalogue(self) -> dict[str, list[str]]:
        named = {"backends": list(self._entry.backends)} if self._entry.backends else {}
        return {**named, ABILITIES: [MEMBERS]}


def fleet(source: Path | str) -> tuple[FakeWorker, ...]:
    """Return the workers that a YAML file, or a YAML text, describes. Raises PluginError with one line for a wrong one."""
    made = (
        described(source, _Fleet)
        if isinstance(source, Path)
        else understood(source, _Fleet, name="the fleet")
    )
    return tuple(_workers(made))


def _workers(made: _Fleet) -> Iterator[FakeWorker]:
    number = 0
    for entry in made.workers:
        status = _status(entry)
        for name in entry.names():
            gpus = [gpu.model_copy(update={"uuid": f"{name}-{gpu.uuid}"}) for gpu in status.gpu_devices]
            yield FakeWorker(number, name, status.model_copy(update={"gpu_devices": gpus}), entry)
            number += 1


def _status(entry: _Workers) -> WorkerStatus:
    return WorkerStatus(
        cpu=CpuStatus(total=entry.cores),
        memory=MemoryStatus(total=entry.ram, used=entry.used),
        kernel={"name": entry.system, "architecture": entry.machine},
        gpu_devices=[gpu_status(each.device, each.usage, {}, told=False) for each in devices_of(entry.gpus)],
    )
