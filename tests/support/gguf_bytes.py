"""GGUF files written byte by byte, so that they can be wrong on purpose."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ALIGNMENT = 32


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def value(content: Any) -> bytes:
    """Return type and bytes of one metadata value."""
    if isinstance(content, bool):
        return struct.pack("<I?", 7, content)
    if isinstance(content, int):
        return struct.pack("<II", 4, content)
    if isinstance(content, float):
        return struct.pack("<If", 6, content)
    if isinstance(content, str):
        return struct.pack("<I", 8) + text(content)
    items = list(content)
    if items and isinstance(items[0], str):
        return struct.pack("<IIQ", 9, 8, len(items)) + b"".join(text(each) for each in items)
    return struct.pack("<IIQ", 9, 4, len(items)) + b"".join(struct.pack("<I", each) for each in items)


def gguf(
    metadata: Mapping[str, Any] | None = None,
    tensors: Sequence[tuple[str, tuple[int, ...], int, int]] = (("token_embd.weight", (32, 4), 0, 512),),
    *,
    version: int = 3,
    data: int | None = None,
) -> bytes:
    """Return a file with ``tensors`` of (name, shape, type, bytes), and as many bytes of data as they need."""
    entries = {"general.architecture": "llama"} if metadata is None else metadata
    parts = [b"GGUF", struct.pack("<IQQ", version, len(tensors), len(entries))]
    parts += [text(key) + value(content) for key, content in entries.items()]
    offset = 0
    for name, shape, kind, size in tensors:
        parts.append(text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape))
        parts.append(struct.pack("<IQ", kind, offset))
        offset += -(-size // ALIGNMENT) * ALIGNMENT
    header = b"".join(parts)
    header += b"\0" * (-len(header) % ALIGNMENT)
    return header + b"\0" * (offset if data is None else data)


def a_gguf(path: Path, metadata: Mapping[str, Any] | None = None, **options: Any) -> Path:
    path.write_bytes(gguf(metadata, **options))
    return path
