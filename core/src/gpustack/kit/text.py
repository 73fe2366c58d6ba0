"""Quantities and names as people read them."""

from __future__ import annotations

import re
import secrets
import string

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
#: Bytes of memory that no machine has; more than this is a mistake wherever it is said.
MOST_MEMORY = 1 << 50
_SUFFIX = string.ascii_lowercase + string.digits
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]i?B|B)?", re.IGNORECASE)
_UNITS = {"b": 1} | {
    f"{letter}{'i' if step == 1024 else ''}b": step**power
    for power, letter in enumerate("kmgt", start=1)
    for step in (1000, 1024)
}


def human_bytes(count: float) -> str:
    """Return ``count`` bytes with a binary unit, as in ``1.5 GiB``."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def parse_size(value: object) -> int:
    """Return the bytes of ``80GiB``, ``1.5 TB`` or of a number. Raises ValueError with one line."""
    match = _SIZE.fullmatch(str(value).strip()) if not isinstance(value, bool) else None
    if match is None:
        raise ValueError(f"{value!r} is no size; give one such as 80GiB")
    return int(float(match[1]) * _UNITS[(match[2] or "B").lower()])


def random_suffix(length: int = 5) -> str:
    """Return ``length`` random characters of a-z and 0-9."""
    return "".join(secrets.choice(_SUFFIX) for _ in range(length))


def shorten(text: str, room: int) -> str:
    """Return ``text``, or its beginning and end with ``…`` between them when it has more than ``room`` characters."""
    if len(text) <= room:
        return text
    half = (room - 1) // 2
    return f"{text[:half]}…{text[len(text) - half :]}"


def plural(count: int, noun: str) -> str:
    """Return ``1 model`` or ``3 models``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
