"""The user's engine parameters: what they set, and how they go on to the engine."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Self

from gpustack.plugin import Refused

_FLAG = re.compile(r"--?[A-Za-z]")
#: The engine reads its numbers into 32 bits.
_LARGEST = 2**31 - 1
_SEVERAL = re.compile(r"\s--?[A-Za-z]")

#: Short and other names of the flags that are looked at here.
_SAME = {
    "-m": "--model",
    "-a": "--alias",
    "-c": "--ctx-size",
    "-np": "--parallel",
    "-b": "--batch-size",
    "-ub": "--ubatch-size",
    "-ctk": "--cache-type-k",
    "-ctv": "--cache-type-v",
    "-cram": "--cache-ram",
    "-fa": "--flash-attn",
    "-ngl": "--gpu-layers",
    "--n-gpu-layers": "--gpu-layers",
    "-ts": "--tensor-split",
    "-sm": "--split-mode",
    "-mg": "--main-gpu",
    "-dev": "--device",
    "-kvu": "--kv-unified",
    "-no-kvu": "--no-kv-unified",
    "-nkvo": "--no-kv-offload",
    "-h": "--help",
}

#: What GPUStack sets itself, since it must know it to reach the engine.
_OURS = {
    "--host": "the address",
    "--port": "the port",
    "--model": "the model's file",
    "--alias": "the model's name",
    "--device": "the GPUs (`gpustack deploy --gpu` chooses them)",
    "--api-key": "access",
    "--api-key-file": "access",
    "--api-prefix": "the paths",
    "--ssl-key-file": "access",
    "--ssl-cert-file": "access",
}
_NO_SERVER = ("--help", "--version")


@dataclass(frozen=True, slots=True)
class Parameter:
    """One flag with its value, if it has one. ``items`` is how it is written on the engine's command line."""

    flag: str
    value: str | None
    items: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Parameters:
    """All parameters in their order; of the same flag given twice, the last one counts."""

    given: tuple[Parameter, ...]

    @classmethod
    def parse(cls, items: Iterable[str]) -> Self:
        """Read ``--flag=value``, ``--flag value`` (one item or two), and several flags in one item.

        Raises Refused for what is no flag, and for the flags that GPUStack sets itself.
        """
        parameters = cls(tuple(_parameters(_words(items))))
        for each in parameters.given:
            if each.flag in _OURS:
                raise Refused(
                    f"{each.flag} cannot be set: GPUStack sets {_OURS[each.flag]} itself; leave it out"
                )
            if each.flag in _NO_SERVER:
                raise Refused(f"{each.flag} would end the engine at once; leave it out")
        return parameters

    def get(self, flag: str) -> str | None:
        """Return the value of ``flag``; None when it is absent or stands alone."""
        return next((each.value for each in reversed(self.given) if each.flag == flag), None)

    def has(self, flag: str) -> bool:
        """Tell whether ``flag`` is given."""
        return any(each.flag == flag for each in self.given)

    def integer(self, flag: str, default: int, *, least: int) -> int:
        """Return the number behind ``flag``. Raises Refused when it is none, or smaller than ``least``."""
        text = self.get(flag)
        if text is None:
            if self.has(flag):
                raise Refused(f"{flag} needs a whole number")
            return default
        try:
            value = int(text)
        except ValueError:
            raise Refused(f"{flag} needs a whole number, not {text!r}") from None
        if value < least:
            raise Refused(f"{flag} must be {least} or more, not {value}")
        if value > _LARGEST:
            raise Refused(f"{flag} must be {_LARGEST} or less, not {value}")
        return value

    def without(self, *flags: str) -> tuple[str, ...]:
        """Return the command line of all but ``flags``."""
        return tuple(item for each in self.given if each.flag not in flags for item in each.items)


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


def _parameters(words: Iterable[str]) -> Iterator[Parameter]:
    flag: str | None = None
    for word in words:
        if _FLAG.match(word):
            if flag is not None:
                yield Parameter(_name(flag), None, (flag,))
            flag, equals, value = word.partition("=")
            if equals:
                yield Parameter(_name(flag), value, _items(flag, value))
                flag = None
        elif flag is not None:
            yield Parameter(_name(flag), word, (flag, word))
            flag = None
        else:
            raise Refused(f"engine parameter {word!r} is no flag: flags begin with --, as in --ctx-size=4096")
    if flag is not None:
        yield Parameter(_name(flag), None, (flag,))


def _name(flag: str) -> str:
    flag = flag.replace("_", "-") if flag.startswith("--") else flag
    return _SAME.get(flag, flag)


def _items(flag: str, value: str) -> tuple[str, ...]:
    """Keep ``=`` where the value could be taken for a flag."""
    return (f"{flag}={value}",) if flag.startswith("--") else (flag, value)
