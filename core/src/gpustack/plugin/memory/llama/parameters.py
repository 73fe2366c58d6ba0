"""The user's parameters of an engine made of llama.cpp: what they set, and how they go on to the engine."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Self

from gpustack.plugin.errors import Refused

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
    "-mm": "--mmproj",
    "-md": "--model-draft",
    "-lm": "--load-mode",
    "-h": "--help",
    "--usage": "--help",
}

#: What GPUStack sets itself, since it must know it to reach the engine.
_OURS = {
    "--host": "the address",
    "--port": "the port",
    "--model": "the model's file",
    "--alias": "the model's name",
    "--device": "the GPUs (`gpustack deploy --gpu` chooses them)",
    "--rpc": "the GPUs of other workers",
    "--api-key": "access",
    "--api-key-file": "access",
    "--api-prefix": "the paths",
    "--ssl-key-file": "access",
    "--ssl-cert-file": "access",
}
#: Flags that make the engine say something and end.
_NO_SERVER = ("--help", "--version", "--list-devices", "--system-info")


@dataclass(frozen=True, slots=True, kw_only=True)
class Flags:
    """How one engine is spoken to, where it differs from the others."""

    #: Flags that GPUStack sets itself, besides those of every engine, and what they are about.
    ours: Mapping[str, str] = field(default_factory=dict)
    #: Flags that are followed by so many values, where that is more than one.
    values: Mapping[str, int] = field(default_factory=dict)
    #: The engine takes ``--flag=value`` as one item; else the value is always an item of its own.
    equals: bool = True


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
    def parse(cls, items: Iterable[str], flags: Flags | None = None) -> Self:
        """Read ``--flag=value``, ``--flag value`` (one item or two), and several flags in one item.

        Raises Refused for what is no flag, and for the flags that GPUStack sets itself.
        """
        flags = flags or Flags()
        ours = {**_OURS, **flags.ours}
        parameters = cls(tuple(_parameters(_words(items), flags)))
        for each in parameters.given:
            if each.flag in ours:
                raise Refused(
                    f"{each.flag} cannot be set: GPUStack sets {ours[each.flag]} itself; leave it out"
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

    def with_files_beside(self, model: str, flags: Iterable[str]) -> Self:
        """Return them with the files that ``flags`` name found beside ``model``, where no folder says otherwise."""
        wanted = frozenset(flags)
        return replace(
            self, given=tuple(_beside(each, model) if each.flag in wanted else each for each in self.given)
        )


def beside(model: str, name: str) -> str:
    """Return the path of the file that a parameter calls ``name``: one without a folder lies beside the model."""
    return name if PurePath(name).is_absolute() else str(PurePath(model).parent / name)


def _beside(parameter: Parameter, model: str) -> Parameter:
    if not (value := parameter.value):
        return parameter
    files = ",".join(beside(model, each) for each in value.split(","))
    items = tuple(each.replace(value, files) if value in each else each for each in parameter.items)
    return replace(parameter, value=files, items=items)


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


def _parameters(words: Iterable[str], flags: Flags) -> Iterator[Parameter]:
    flag: str | None = None
    values: list[str] = []
    for word in words:
        if _FLAG.match(word):
            if flag is not None:
                yield _parameter(flag, values)
            flag, equals, value = word.partition("=")
            values = []
            if equals:
                yield _with_equals(flag, value, flags)
                flag = None
        elif flag is not None:
            values.append(word)
            if len(values) == flags.values.get(_name(flag), 1):
                yield _parameter(flag, values)
                flag = None
        else:
            raise Refused(f"engine parameter {word!r} is no flag: flags begin with --, as in --ctx-size=4096")
    if flag is not None:
        yield _parameter(flag, values)


def _parameter(flag: str, values: list[str]) -> Parameter:
    return Parameter(_name(flag), values[0] if values else None, (flag, *values))


def _name(flag: str) -> str:
    flag = flag.replace("_", "-") if flag.startswith("--") else flag
    return _SAME.get(flag, flag)


def _with_equals(flag: str, value: str, flags: Flags) -> Parameter:
    several = flags.values.get(_name(flag), 1)
    if several > 1:
        return _parameter(flag, value.split(maxsplit=several - 1))
    # ``=`` is kept where the value could be taken for a flag.
    joined = flags.equals and flag.startswith("--")
    return Parameter(_name(flag), value, (f"{flag}={value}",) if joined else (flag, value))
