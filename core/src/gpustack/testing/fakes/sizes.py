"""Sizes of memory as people write them."""

from __future__ import annotations

import re

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]i?B|B)?", re.IGNORECASE)
_UNITS = {"b": 1} | {
    f"{letter}{'i' if step == 1024 else ''}b": step**power
    for power, letter in enumerate("kmgt", start=1)
    for step in (1000, 1024)
}


def parse_size(value: object) -> int:
    """Return the bytes of ``80GiB``, ``1.5 TB`` or of a number. Raises ValueError with one line."""
    match = _SIZE.fullmatch(str(value).strip()) if not isinstance(value, bool) else None
    if match is None:
        raise ValueError(f"{value!r} is no size; give one such as 80GiB")
    return int(float(match[1]) * _UNITS[(match[2] or "B").lower()])
