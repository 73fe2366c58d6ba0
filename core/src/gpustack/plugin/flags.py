"""The engine parameters that users give: taken apart, checked, and passed on.

They come one to an item, as ``--flag=value``, ``--flag value``, or flag and value in items of their own:

    from gpustack.plugin.flags import Flags

    flags = Flags.parse(request.parameters, aliases={"-tp": "--tensor-parallel-size"}, owned={"--port": "the port"})
    tensor = flags.integer("--tensor-parallel-size", 1, least=1)
    argv = (*argv, *flags.items)
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

from gpustack.plugin.errors import Refused

_FLAG = re.compile(r"--?[A-Za-z]")
_SEVERAL = re.compile(r"\s--?[A-Za-z]")
_ENDS = ("--help", "--version")
#: Numbers with a unit, as in ``32k`` (thousands) and ``32K`` (times 1024).
_UNITS = {"k": 10**3, "m": 10**6, "g": 10**9, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
#: Engines read their numbers into 64 bits; no sum of a few of these leaves that.
_LARGEST = 1 << 53


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag as it was given. ``name`` is its full one, ``items`` how it is written on the command line."""

    name: str
    values: tuple[str, ...]
    items: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Flags:
    """All that were given, in their order; of the same one given twice, the last counts."""

    given: tuple[Flag, ...]
    #: The engine understands numbers as in ``32k``.
    units: bool = False

    @classmethod
    def parse(
        cls,
        items: Iterable[str],
        *,
        owned: Mapping[str, str],
        aliases: Mapping[str, str] | None = None,
        units: bool = False,
    ) -> Self:
        """Take ``items`` apart. ``aliases`` are other names of flags; ``owned`` those that GPUStack sets, and what they are.

        An engine that knows flags by their beginnings would take ``--por`` for ``--port``, so beginnings of owned flags
        are refused too. Raises Refused for those, and for what is no flag.
        """
        flags = cls(tuple(_flags(_words(items), aliases or {})), units)
        for each in flags.given:
            if each.name in _ENDS or each.items[0] == "-h":
                raise Refused(f"{each.items[0]} would end the engine at once; leave it out")
            for own, what in owned.items():
                if each.name == own or (len(each.name) > len("--x") and own.startswith(each.name)):
                    raise Refused(f"{each.name} cannot be set: GPUStack sets {what} itself; leave it out")
        return flags

    @property
    def items(self) -> tuple[str, ...]:
        """The command line of all of them."""
        return tuple(item for each in self.given for item in each.items)

    def without(self, *names: str) -> tuple[str, ...]:
        """Return the command line of all but those called ``names``."""
        return tuple(item for each in self.given if each.name not in names for item in each.items)

    def has(self, *names: str) -> bool:
        """Tell whether one of ``names`` is given."""
        return any(each.name in names for each in self.given)

    def values(self, name: str) -> tuple[str, ...]:
        """Return all values behind a flag; nothing when it is absent or stands alone."""
        return next((each.values for each in reversed(self.given) if each.name == name), ())

    def text(self, name: str) -> str | None:
        """Return the value of a flag, None when it is absent. Raises Refused when it stands alone."""
        if not self.has(name):
            return None
        values = self.values(name)
        if len(values) != 1:
            raise Refused(f"{name} needs a value" if not values else f"{name} takes one value")
        return values[0]

    def is_on(self, name: str) -> bool:
        """Tell whether a switch is on: it is given, and not taken back by ``--no-…`` after it."""
        opposite = f"--no-{name.removeprefix('--')}"
        last = next((each for each in reversed(self.given) if each.name in (name, opposite)), None)
        return last is not None and last.name == name and last.values[:1] not in (("false",), ("False",))

    def integer(self, name: str, default: int, *, least: int) -> int:
        """Return the number behind a flag. Raises Refused when it is none, or too small."""
        text = self.text(name)
        if text is None:
            return default
        number = self._number(text)
        if number is None or not number.is_integer():
            raise Refused(f"{name} needs a whole number, not {text!r}")
        if not least <= number <= _LARGEST:
            raise Refused(f"{name} must be {least} or more, not {text}")
        return int(number)

    def decimal(self, name: str, default: float, *, least: float, most: float = math.inf) -> float:
        """Return the number behind a flag, which may have a fraction. Raises Refused when it is none."""
        text = self.text(name)
        if text is None:
            return default
        number = self._number(text)
        if number is None:
            raise Refused(f"{name} needs a number, not {text!r}")
        if not least <= number <= min(most, _LARGEST):
            bounds = f"between {least:g} and {most:g}" if math.isfinite(most) else f"{least:g} or more"
            raise Refused(f"{name} must be {bounds}, not {text}")
        return number

    def _number(self, text: str) -> float | None:
        unit = _UNITS.get(text[-1:], 1) if self.units else 1
        digits = text[:-1] if unit > 1 else text
        if re.fullmatch(r"[+-]?([0-9]{1,18}(\.[0-9]{1,18})?|\.[0-9]{1,18})", digits) is None:
            return None
        return float(digits) * unit

    def document(self, name: str) -> dict[str, Any]:
        """Return the JSON object behind a flag, an empty one when it is absent. Raises Refused when it is none."""
        text = self.text(name)
        if text is None:
            return {}
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise Refused(f"{name} needs a JSON object: {error}") from None
        if not isinstance(value, dict):
            raise Refused(f"{name} needs a JSON object, as in '{{\"name\": 1}}', not {text[:60]!r}")
        return value


def _words(items: Iterable[str]) -> Iterator[str]:
    """Take apart what was written as on a command line; values with spaces after ``=`` stay whole."""
    for item in items:
        text = item.strip()
        space, equals = re.search(r"\s", text), text.find("=")
        apart = space and (equals < 0 or space.start() < equals or _SEVERAL.search(text))
        if not apart or not _FLAG.match(text):
            yield text
            continue
        try:
            yield from shlex.split(text)
        except ValueError as error:
            raise Refused(f"engine parameter {item!r} cannot be taken apart: {error}") from None


def _flags(words: Iterable[str], aliases: Mapping[str, str]) -> Iterator[Flag]:
    name, values, items = "", [], []
    for word in words:
        if not _FLAG.match(word):
            if not name:
                raise Refused(
                    f"engine parameter {word!r} is no flag: flags begin with --, as in --max-model-len=4096"
                )
            values.append(word)
            items.append(word)
            continue
        if name:
            yield Flag(name, tuple(values), tuple(items))
        written, equals, value = word.partition("=")
        name, values, items = _full(written, aliases), [value] if equals else [], [word]
    if name:
        yield Flag(name, tuple(values), tuple(items))


def _full(written: str, aliases: Mapping[str, str]) -> str:
    name = written.replace("_", "-") if written.startswith("--") else written
    return aliases.get(name, name)
