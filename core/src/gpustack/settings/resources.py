"""What the settings say a worker has, in the place of what its detectors find.

    resources:
      cpu: {total: 32}
      memory: {total: 128GiB}
      gpu_devices:
        - {name: NVIDIA L4, vendor: nvidia, index: 0, memory: {total: 24GiB}}

The keys are those of a worker's status in the API. What is left out is as the detectors find it.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from gpustack.kit.text import parse_size
from gpustack.settings.kinds import Text

#: Bytes; nothing has more, and it can be counted wherever it is kept.
_MOST_MEMORY = 1 << 50
_GPU = '{"name": "NVIDIA L4", "vendor": "nvidia", "index": 0, "memory": {"total": "24GiB"}}'
_EXAMPLE = f'{{"gpu_devices": [{_GPU}]}}'
_SIZES = '{"total": "24GiB"}'


def _size(value: object) -> int:
    try:
        size = parse_size(value)
    except ValueError:
        raise ValueError("give a number of bytes, or a size such as 24GiB") from None
    if not 0 <= size <= _MOST_MEMORY:
        raise ValueError(f"give at most {_MOST_MEMORY} bytes")
    return size


def _some(size: int) -> int:
    if size == 0:
        raise ValueError("give a size such as 24GiB, and not 0")
    return size


def _whole(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("give a whole number")
    return value


def _lower(text: str) -> str:
    return text.lower()


def _named(text: str) -> str:
    if not text:
        raise ValueError("give a name")
    return text


def _single(text: str) -> str:
    if "," in text or " " in text:
        raise ValueError("give one uuid, without commas and spaces")  # engines are shown a list of them
    return text


def _several(value: object) -> object:
    if not isinstance(value, list | tuple):
        raise ValueError(f"give a list such as [{_GPU}]")
    return value


Size = Annotated[int, BeforeValidator(_size)]
Whole = Annotated[int, BeforeValidator(_whole)]
Number = Annotated[float, BeforeValidator(_whole)]
Named = Annotated[Text, AfterValidator(_named)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    #: As a message shows it.
    example: ClassVar[str]

    @model_validator(mode="before")
    @classmethod
    def _keyed(cls, value: object) -> object:
        if not isinstance(value, dict | cls):
            raise ValueError(f"give an object such as {cls.example}")
        return value


class _Sizes(_Part):
    """Memory of some kind, in bytes or as ``64GiB``. ``used`` is measured when it is left out, where a detector can.

    With ``used``, what is given is taken to be others', whatever our instances use beside it.
    """

    example = _SIZES

    total: Annotated[Size, AfterValidator(_some)]
    used: Size | None = None

    @model_validator(mode="after")
    def _within(self) -> Self:
        if self.used is not None and self.used > self.total:
            raise ValueError("used is more than total; give at most that")
        return self


class Cores(_Part):
    """Cores of the processor."""

    example = '{"total": 32}'

    total: Whole = Field(ge=1, le=1_000_000)


class Memory(_Sizes):
    """The machine's memory."""

    is_unified_memory: bool | None = None


class Swap(_Sizes):
    """Swap, of which there may be none."""

    total: Size


class GpuMemory(_Sizes):
    """A GPU's memory."""


class GpuCores(_Part):
    """Cores of a GPU."""

    example = '{"total": 7424}'

    total: Whole = Field(ge=0, le=10_000_000)


class Gpu(_Part):
    """One GPU. What is left out is that of the detected GPU with the same ``uuid``, or else vendor and index."""

    example = _GPU

    name: Named
    vendor: Annotated[Named, AfterValidator(_lower)]
    index: Whole = Field(ge=0, le=65_535)
    memory: GpuMemory
    uuid: Annotated[Text, AfterValidator(_single)] = ""
    type: Text = ""
    driver_version: Text = ""
    runtime_version: Text = ""
    compute_capability: Text = ""
    arch_family: Text = ""
    core: GpuCores | None = None
    #: Watts.
    power: Number = Field(default=0.0, ge=0, le=1_000_000)
    numa_node: Whole | None = Field(default=None, ge=0, le=65_535)
    link_group: Text = ""


def _apart(gpus: tuple[Gpu, ...]) -> tuple[Gpu, ...]:
    for what in ("index", "uuid"):
        seen: dict[Any, int] = {}
        for number, gpu in enumerate(gpus):
            value = getattr(gpu, what)
            if value != "" and value in seen:
                raise ValueError(
                    f"number {seen[value]} and number {number} both have the {what} {value}; give each its own"
                )
            seen[value] = number
    return gpus


class Resources(_Part):
    """Each part that is given replaces what is detected; ``gpu_devices: []`` is a machine without GPUs."""

    example = _EXAMPLE

    cpu: Cores | None = None
    memory: Memory | None = None
    swap: Swap | None = None
    gpu_devices: Annotated[tuple[Gpu, ...], BeforeValidator(_several), AfterValidator(_apart)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: object) -> object:
        parsed: Any = value
        if isinstance(value, str):
            try:
                parsed = json.loads(value)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"give JSON such as {_EXAMPLE}") from error
        return parsed
