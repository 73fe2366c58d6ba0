"""Quantities and names as people read them."""

from __future__ import annotations

import secrets
import string

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
_SUFFIX = string.ascii_lowercase + string.digits


def human_bytes(count: float) -> str:
    """Return ``count`` bytes with a binary unit, as in ``1.5 GiB``."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


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
