"""How much memory an engine takes of which nothing is known but its model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from gpustack.plugin import ModelFacts, Refused, ResourceClaim
from gpustack.plugin.memory import parse_size

_GIB = 1 << 30
#: What a process takes beside its model, and what of that stays in RAM when the model is on GPUs.
_PROCESS = _GIB // 2
#: Weights are held once, and a fifth of them again is room for caches and buffers.
_ROOM = 5
_RAM, _VRAM, _GPUS = "--gpustack-ram", "--gpustack-vram", "--gpustack-gpus"
#: GPUs of one worker; more is a slip.
_MOST_GPUS = 64


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the user says that an engine takes, in bytes and GPUs; None where nothing is said. ``rest`` is the engine's."""

    ram: int | None
    vram: int | None
    gpus: int | None
    rest: tuple[str, ...]

    @classmethod
    def read(cls, parameters: Iterable[str]) -> Self:
        """Take what is for GPUStack out of ``parameters``. Raises Refused with one line for what makes no sense."""
        said: dict[str, str] = {}
        rest: list[str] = []
        waiting = ""
        for item in parameters:
            word, equals, value = item.strip().partition("=")
            name, space, after = word.partition(" ")
            if waiting:
                said[waiting], waiting = item.strip(), ""
            elif name not in (_RAM, _VRAM, _GPUS):
                rest.append(item)
            elif equals:
                said[word] = value.strip()
            elif space:
                said[name] = after.strip()
            else:
                waiting = name
        if waiting:
            raise Refused(f"{waiting} needs a value, as in {waiting}={'1' if waiting == _GPUS else '8GiB'}")
        wanted = cls(_size(said, _RAM), _size(said, _VRAM), _count(said), tuple(rest))
        if wanted.gpus == 0 and wanted.vram:
            raise Refused(f"{_GPUS}=0 and {_VRAM} contradict each other; leave one of them out")
        return wanted


def ways(model: ModelFacts, wanted: Wanted, devices: int) -> Sequence[ResourceClaim]:
    """Return the claims on up to ``devices`` GPUs, the fewest first; one on RAM alone without, or when that is wanted.

    Raises Refused when more GPUs are wanted than there are.
    """
    if not devices or wanted.gpus == 0:
        return (ResourceClaim(ram=_in_all(model) if wanted.ram is None else max(1, wanted.ram)),)
    ram = _PROCESS if wanted.ram is None else wanted.ram
    vram = wanted.vram or _in_all(model)
    if wanted.gpus is not None and wanted.gpus > devices:
        raise Refused(f"{_GPUS}={wanted.gpus}, and there are {devices} GPUs")
    # Few engines divide a model by anything else.
    doubled = [1 << power for power in range(devices.bit_length()) if 1 << power < devices]
    counts = [*doubled, devices] if wanted.gpus is None else [wanted.gpus]
    return [_even(ram, vram, gpus) for gpus in counts]


def _even(ram: int, vram: int, gpus: int) -> ResourceClaim:
    return ResourceClaim(ram=ram, vram=gpus * -(-vram // gpus), gpus=gpus)


def _in_all(model: ModelFacts) -> int:
    return _PROCESS + model.weight_bytes + model.weight_bytes // _ROOM


def _size(said: dict[str, str], name: str) -> int | None:
    if name not in said:
        return None
    try:
        return parse_size(said[name])
    except ValueError as error:
        raise Refused(f"{name}: {error}") from None


def _count(said: dict[str, str]) -> int | None:
    text = said.get(_GPUS)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal()) or len(text) > 3 or int(text) > _MOST_GPUS:
        raise Refused(f"{_GPUS} needs a number of GPUs from 0 to {_MOST_GPUS}, not {text!r}")
    return int(text)
