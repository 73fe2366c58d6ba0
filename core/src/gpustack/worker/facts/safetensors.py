"""Weights in safetensors: the header of each shard, and the index that names the shards."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from gpustack.kit.errors import InvalidInput
from gpustack.kit.text import human_bytes, plural
from gpustack.worker.facts.json_files import LIMIT, parse, read_json, section
from gpustack.worker.facts.reader import Opener, open_local, whole
from gpustack.worker.facts.tensors import Sums

INDEX = "model.safetensors.index.json"
_MAX_SHARDS = 10_000


@dataclass(frozen=True, slots=True)
class Weights:
    """All shards of a model together."""

    shards: tuple[Path, ...]
    size: int
    parameters: int
    #: The type that most of the bytes have, as in ``BF16``.
    dtype: str
    #: Bytes of each shard.
    sizes: tuple[int, ...]
    #: Bytes of the tensors, by type and place.
    sums: Sums


def read_weights(folder: Path, opener: Opener = open_local) -> Weights | None:
    """Return what the shards in ``folder`` hold, or None when there are none.

    Raises InvalidInput when a shard is missing, damaged or truncated; OSError passes through.
    """
    shards = _shards(folder)
    if not shards:
        return None
    parameters, sums = 0, Sums()
    sizes = tuple(shard.stat().st_size for shard in shards)
    for shard, size in zip(shards, sizes, strict=True):
        parameters += _read_shard(shard, size, sums, opener)
    dtype = max(sums.by_type, key=sums.by_type.__getitem__, default="")
    return Weights(shards, sum(sizes), parameters, dtype, sizes, sums)


def _shards(folder: Path) -> tuple[Path, ...]:
    names = _indexed(folder)
    if names:
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            shown = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
            raise InvalidInput(
                f"{plural(len(missing), 'shard')} of {len(names)} missing in {folder}: {shown}"
            )
        return tuple(folder / name for name in names)
    if (single := folder / "model.safetensors").is_file():
        return (single,)
    found = sorted(each for each in folder.glob("*.safetensors") if each.is_file())
    return tuple(found[:_MAX_SHARDS])


def _indexed(folder: Path) -> list[str]:
    """Return the names of the shards that the index lists."""
    files = section(read_json(folder / INDEX), "weight_map").values()
    names = {name for name in files if isinstance(name, str)}
    for name in names:
        if PurePosixPath(name).name != name or "\0" in name or not name:
            raise InvalidInput(f"{folder / INDEX} names a shard outside its directory; it is damaged")
    if len(names) > _MAX_SHARDS:
        raise InvalidInput(f"{folder / INDEX} names {len(names)} shards; it is damaged")
    return sorted(names)


def _read_shard(path: Path, size: int, sums: Sums, opener: Opener) -> int:
    """Check one shard, add its bytes to ``sums``, and return its number of elements."""
    again = "copy or download it again"
    with opener(path) as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or 8 + length > size:
            raise InvalidInput(f"{path} is truncated or no safetensors file; {again}")
        if length > LIMIT:
            raise InvalidInput(f"{path} is damaged: its header claims {human_bytes(length)}; {again}")
        header = parse(file.read(length), path, "its header")
    elements, end = 0, 0
    for name, tensor in header.items():
        if name == "__metadata__":
            continue
        if (read := _tensor(tensor)) is None:
            raise InvalidInput(f"{path} is damaged: its header describes a tensor wrongly; {again}")
        dtype, count, start, stop = read
        elements += count
        end = max(end, stop)
        sums.add(name, dtype, stop - start)
    if (whole_size := 8 + length + end) > size:
        missing = f"{human_bytes(whole_size - size)} are missing of {human_bytes(whole_size)}"
        raise InvalidInput(f"{path} is truncated: {missing}; {again}")
    return elements


def _tensor(value: Any) -> tuple[str, int, int, int] | None:
    """Return type, elements, first and last byte of one tensor's description, or None when it makes no sense."""
    if not isinstance(value, dict):
        return None
    shape, offsets, dtype = value.get("shape"), value.get("data_offsets"), value.get("dtype")
    if not isinstance(shape, list) or not isinstance(offsets, list) or not isinstance(dtype, str):
        return None
    if len(offsets) != 2 or len(shape) > 32 or not all(_is_count(n) for n in (*shape, *offsets)):
        return None
    start, stop = offsets
    return (dtype[:16], whole(math.prod(shape)), start, stop) if start <= stop else None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 1 << 53
