"""What of other settings can be applied to what runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_TLS = ("ssl_certfile", "ssl_keyfile")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """The names of options that changed, and the settings with what of it is applied."""

    applied: tuple[str, ...]
    needs_restart: tuple[str, ...]
    settings: dict[str, Any]


def change(present: Mapping[str, Any], new: Mapping[str, Any]) -> Change:
    """Return what becomes of ``present`` when ``new`` is read; both are described settings."""
    applied: list[str] = []
    needs_restart: list[str] = []
    for row in new["effective"]:
        name = row["name"]
        old_value, new_value = _value(present, row), _value(new, row)
        if old_value == new_value:
            continue
        # A socket for TLS is opened, or closed, at a start only.
        switched = name in _TLS and (old_value is None) != (new_value is None)
        (applied if row["reload"] and not switched else needs_restart).append(name)
    # Where a value stands is told as it is now, also when it stayed the same.
    old_rows = {row["name"]: row for row in present["effective"]}
    rows = [
        old_rows.get(row["name"], row) if row["name"] in needs_restart else row for row in new["effective"]
    ]
    settings = {**present, **{name: new[name] for name in applied}, "effective": rows}
    return Change(applied=tuple(applied), needs_restart=tuple(needs_restart), settings=settings)


def _value(settings: Mapping[str, Any], row: Mapping[str, Any]) -> Any:
    name = row["name"]
    return settings[name] if name in settings else settings["plugins"].get(name, row["default"])
