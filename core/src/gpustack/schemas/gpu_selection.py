"""GPUs that are chosen by hand for a model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from pydantic import Field, field_validator, model_validator

from gpustack.schemas.common import Input

#: A worker's name may have colons; the type and the index have none.
_GPU_ID = re.compile(
    r"(?P<worker>[^\x00-\x1f]{1,128}):(?P<type>[^:\x00-\x1f]{1,64}):(?P<index>0|[1-9][0-9]{0,5})"
)


@dataclass(frozen=True, slots=True)
class GpuName:
    """The parts of a GPU's id, ``worker:type:index``."""

    worker: str
    type: str
    index: int

    def __str__(self) -> str:
        return f"{self.worker}:{self.type}:{self.index}"


def gpu_name(text: str) -> GpuName:
    """Return the parts of a GPU's id. Raises ValueError when it is none."""
    found = _GPU_ID.fullmatch(text)
    if found is None:
        raise ValueError(
            f"{text[:200]!r} is no GPU: they are named worker:type:index, such as box:cuda:0; "
            "`gpustack gpus` lists them"
        )
    return GpuName(found["worker"], found["type"], int(found["index"]))


class GpuSelector(Input):
    """The GPUs that a model may run on, whatever else is free. Of several copies each gets its own, as far as they go."""

    #: ``worker:type:index`` each, as in the list of GPUs.
    gpu_ids: list[str] = Field(default_factory=list, max_length=4096, validate_default=True)
    #: How many of them one copy gets; null is its share of them, rounded down to a power of two, or fewer that have room.
    gpus_per_replica: int | None = Field(default=None, ge=1)

    @field_validator("gpu_ids")
    @classmethod
    def _are_gpus(cls, gpu_ids: list[str]) -> list[str]:
        if not gpu_ids:
            raise ValueError("no GPU is named; leave gpu_selector null when any will do")
        seen: set[GpuName] = set()
        for text in gpu_ids:
            if (name := gpu_name(text)) in seen:
                raise ValueError(f"{text!r} is named twice")
            seen.add(name)
        return gpu_ids

    @model_validator(mode="after")
    def _are_enough(self) -> GpuSelector:
        if self.gpus_per_replica is not None and self.gpus_per_replica > len(self.gpu_ids):
            raise ValueError(
                f"gpus_per_replica {self.gpus_per_replica} is more than the number of GPUs in gpu_ids, "
                f"{len(self.gpu_ids)}"
            )
        return self

    @cached_property
    def by_worker(self) -> Mapping[str, tuple[GpuName, ...]]:
        """The GPUs by the name of their worker, in the order in which they are named."""
        found: dict[str, list[GpuName]] = {}
        for text in self.gpu_ids:
            name = gpu_name(text)
            found.setdefault(name.worker, []).append(name)
        return {worker: tuple(names) for worker, names in found.items()}

    def indexes(self) -> dict[str, frozenset[int]]:
        """Return the indexes of the GPUs by the name of their worker."""
        return {worker: frozenset(each.index for each in names) for worker, names in self.by_worker.items()}


class GpuSelectorPatch(Input):
    """What is to change of a :class:`GpuSelector`."""

    gpu_ids: list[str] | None = None
    gpus_per_replica: int | None = None
