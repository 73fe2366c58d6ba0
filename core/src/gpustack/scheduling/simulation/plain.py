"""Reads plain values, as they come out of YAML, and says of each that is wrong where it stands."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from gpustack.kit.errors import InvalidInput
from gpustack.kit.text import MOST_MEMORY, human_bytes

T = TypeVar("T")

#: Where a value stands: names of mappings and numbers of lists, from the outside.
Place = tuple[str | int, ...]

_SIZES = {"": 1, "b": 1} | {
    f"{letter}{ending}": base**power
    for power, letter in enumerate("kmgt", start=1)
    for ending, base in (("ib", 1024), ("b", 1000), ("i", 1024))
}
_TIMES = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
#: Seconds.
_LONGEST = 100 * 365.25 * 86400
_NUMBER = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


class WrongValue(InvalidInput):
    """A value that cannot be, with its place in the document."""

    def __init__(self, place: Place, message: str) -> None:
        super().__init__(f"{spelled(place)}: {message}" if place else message)
        self.place = place


def spelled(place: Place) -> str:
    """Return a place as people write it, such as ``workers[0].gpus``."""
    return "".join(f"[{each}]" if isinstance(each, int) else f".{each}" for each in place).lstrip(".")


class Part:
    """A mapping; every name in it is to be read, others are wrong."""

    def __init__(self, value: object, place: Place, names: Sequence[str], what: str) -> None:
        if not isinstance(value, Mapping):
            raise WrongValue(place, f"{what} is written as names and values, not as {_shown(value)}")
        self._values: Mapping[Any, Any] = value
        self.place = place
        for name in value:
            if name not in names:
                raise WrongValue(
                    (*place, str(name)), f"{what} has no {name!r}; there are: {', '.join(names)}"
                )

    def __contains__(self, name: str) -> bool:
        return self._values.get(name) is not None

    def at(self, name: str) -> Place:
        """Return where the value of ``name`` stands."""
        return (*self.place, name)

    def raw(self, name: str) -> Any:
        """Return what is there, None when nothing is."""
        return self._values.get(name)

    def wrong(self, name: str, message: str) -> WrongValue:
        """Return the error about the value of ``name``."""
        return WrongValue(self.at(name), message)

    def text(self, name: str, default: str | None = None) -> str:
        """Return a text; without a default it must be there."""
        value = self._given(name, default)
        if isinstance(value, bool | list | dict):
            raise self.wrong(name, f"expected a text, not {_shown(value)}")
        return str(value)

    def whole(self, name: str, default: int | None = None, *, least: int = 0, most: int = 10**9) -> int:
        """Return a whole number."""
        value = self._given(name, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.wrong(name, f"expected a whole number, not {_shown(value)}")
        if not least <= value <= most:
            raise self.wrong(name, f"expected a number from {least} to {most}, not {value}")
        return value

    def flag(self, name: str, *, default: bool) -> bool:
        """Return true or false."""
        value = self._given(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name, f"expected true or false, not {_shown(value)}")
        return value

    def size(self, name: str, default: str | None = None) -> int:
        """Return bytes, written as ``80GiB`` or as a number."""
        value = self._given(name, default)
        size = self._measured(name, value, _SIZES, "a size such as 80GiB")
        if size > MOST_MEMORY:
            raise self.wrong(name, f"no machine has more than {human_bytes(MOST_MEMORY)}; {_shown(value)} is")
        return int(size)

    def seconds(self, name: str, default: str | None = None) -> float:
        """Return seconds, written as ``90s``, ``5m``, ``2h`` or as a number."""
        value = self._given(name, default)
        seconds = self._measured(name, value, _TIMES, "a time such as 90s, 5m or 2h")
        if seconds > _LONGEST:
            raise self.wrong(name, f"a hundred years are the longest time there is, not {_shown(value)}")
        return seconds

    def texts(self, name: str) -> dict[str, str]:
        """Return names with texts, such as labels; none when there are none."""
        value = self.raw(name)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise self.wrong(name, f"expected names and values, not {_shown(value)}")
        return {str(key): str(item) for key, item in value.items()}

    def items(self, name: str) -> list[tuple[object, Place]]:
        """Return the items of a list with their places; none when it is absent."""
        value = self.raw(name)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.wrong(name, f"expected a list, not {_shown(value)}")
        return [(item, (*self.place, name, number)) for number, item in enumerate(value)]

    def choice(self, name: str, options: Mapping[str, T], default: str) -> T:
        """Return what is chosen by one of the names."""
        value = self.text(name, default)
        if value not in options:
            raise self.wrong(name, f"there is no {value!r}; there are: {', '.join(options)}")
        return options[value]

    def _given(self, name: str, default: object) -> Any:
        value = self.raw(name)
        if value is None:
            value = default
        if value is None:
            raise WrongValue(self.place, f"{name} is missing")
        return value

    def _measured(self, name: str, value: object, units: Mapping[str, float], expected: str) -> float:
        match = _NUMBER.fullmatch(str(value)) if not isinstance(value, bool) else None
        factor = units.get(match[2].lower()) if match else None
        if match is None or factor is None:
            raise self.wrong(name, f"expected {expected}, not {_shown(value)}")
        return float(match[1]) * factor


def _shown(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "names and values"
    return "a list" if isinstance(value, list) else repr(value)
