"""The header of one GGUF file: its metadata and the list of its tensors."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpustack.kit.errors import InvalidInput
from gpustack.kit.text import human_bytes
from gpustack.worker.facts.gguf_types import ARRAY, SCALARS, STRING, TENSOR_TYPES
from gpustack.worker.facts.reader import Opener, Reader, open_local
from gpustack.worker.facts.tensors import Sums

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_ENTRIES = 1 << 16
_MAX_TENSORS = 1 << 17
_MAX_KEY = 1 << 16
_MAX_DIMENSIONS = 4
#: Longer texts and arrays are walked over, not kept: nothing needed is that long but a chat template.
_KEPT_TEXT = 1 << 20
_KEPT_ITEMS = 4096
_MAX_DEPTH = 3
#: The largest vocabularies with their merges have about a million texts.
_MAX_TEXTS = 1 << 21


@dataclass(frozen=True, slots=True)
class Items:
    """An array of the metadata: how long it is, and its numbers when they are few."""

    length: int
    numbers: tuple[int | float, ...] = ()


@dataclass(slots=True)
class Header:
    """What one file says."""

    path: Path
    size: int
    metadata: dict[str, Any] = field(default_factory=dict)
    #: Elements of all tensors.
    elements: int = 0
    tensors: int = 0
    tensor_names: set[str] = field(default_factory=set)
    #: Bytes of the tensors, by type and place.
    sums: Sums = field(default_factory=Sums)

    @property
    def architecture(self) -> str:
        """The model's kind, as in ``llama``."""
        value = self.metadata.get("general.architecture")
        return value if isinstance(value, str) else ""

    def own(self, key: str) -> Any:
        """Return the metadata value ``<architecture>.<key>``."""
        return self.metadata.get(f"{self.architecture}.{key}")


def read_header(path: Path, size: int, opener: Opener = open_local) -> Header:
    """Return the header of ``path``, which has ``size`` bytes, after checking that its tensors are all there.

    Raises InvalidInput for anything else than a complete GGUF file of version 2 or 3; OSError passes through.
    """
    header = Header(path=path, size=size)
    with opener(path) as file:
        reader = Reader(file, path, size)
        if reader.take(4) != MAGIC:
            raise reader.damaged("it does not start with GGUF")
        _version(reader, path)
        tensors, entries = reader.number("Q"), reader.number("Q")
        # An entry takes at least 13 bytes and a tensor 24, so a count beyond the file is a lie.
        if entries > _MAX_ENTRIES or tensors > _MAX_TENSORS:
            raise reader.damaged(f"it claims {entries} entries and {tensors} tensors")
        reader.need(entries * 13 + tensors * 24)
        for _ in range(entries):
            key = _text(reader, limit=_MAX_KEY)
            header.metadata[key] = _value(reader, reader.number("I"))
        end = _tensors(reader, header, tensors)
    if end > size:
        raise InvalidInput(
            f"{path} is truncated: {human_bytes(end - size)} are missing of {human_bytes(end)}; "
            "copy or download it again"
        )
    return header


def _version(reader: Reader, path: Path) -> None:
    version = reader.number("I")
    if version in _VERSIONS:
        return
    if version in {v << 24 for v in _VERSIONS}:
        raise InvalidInput(
            f"{path} is a big-endian GGUF file; convert it with `gguf-convert-endian {path.name} little`"
        )
    if version == 1:
        raise InvalidInput(f"{path} has the outdated GGUF version 1; convert or download it anew")
    raise InvalidInput(f"{path} has GGUF version {version}; this GPUStack reads versions 2 and 3")


def _text(reader: Reader, *, limit: int = _KEPT_TEXT) -> str:
    length = reader.number("Q")
    reader.need(length)
    if length > limit:
        if limit == _MAX_KEY:
            raise reader.damaged(f"a name in it has {length} bytes")
        reader.skip(length)
        return ""
    return reader.take(length).decode("utf-8", "replace")


def _value(reader: Reader, kind: int) -> Any:
    if kind == STRING:
        return _text(reader)
    if kind == ARRAY:
        return _array(reader, depth=0)
    if (code := SCALARS.get(kind)) is None:
        raise reader.damaged(f"it holds a value of unknown type {kind}")
    return reader.number(code)


def _array(reader: Reader, *, depth: int) -> Items:
    kind, length = reader.number("I"), reader.number("Q")
    if (code := SCALARS.get(kind)) is not None:
        width = struct.calcsize("<" + code)
        if length > _KEPT_ITEMS:
            reader.skip(length * width)
            return Items(length)
        return Items(length, struct.unpack(f"<{length}{code}", reader.take(length * width)))
    if kind == STRING:
        reader.skip_texts(length, limit=_MAX_TEXTS)
        return Items(length)
    if kind == ARRAY and depth < _MAX_DEPTH:
        reader.need(length * 12)
        for _ in range(length):
            _array(reader, depth=depth + 1)
        return Items(length)
    raise reader.damaged(f"it holds an array of unknown type {kind}")


def _tensors(reader: Reader, header: Header, count: int) -> int:
    """Read the tensors' descriptions into ``header``; return the byte where the last one ends."""
    data_end = 0
    for _ in range(count):
        name = _text(reader, limit=_MAX_KEY)
        dimensions = reader.number("I")
        if not 0 < dimensions <= _MAX_DIMENSIONS:
            raise reader.damaged(f"a tensor has {dimensions} dimensions")
        shape = struct.unpack(f"<{dimensions}Q", reader.take(8 * dimensions))
        kind, offset = reader.number("I"), reader.number("Q")
        elements = math.prod(shape)
        # A type newer than this table: its size is unknown, so only its beginning can be checked.
        label, block, width = TENSOR_TYPES.get(kind, (f"type {kind}", 1, 0))
        length = -(-elements // block) * width
        data_end = max(data_end, offset + length)
        header.elements += elements
        header.sums.add(name, label, length)
        header.sums.complete &= width > 0
        header.tensor_names.add(name)
    header.tensors = count
    alignment = header.metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20 or alignment & (alignment - 1):
        raise reader.damaged("its alignment is no power of two")
    start = -(-reader.position // alignment) * alignment
    return start + data_end if count else reader.position
