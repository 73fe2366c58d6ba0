"""The sources of settings: what the environment and the YAML file give, raw, and where each value stands.

dynaconf reads both. Its casts (``@format``, ``@jinja``) stay off, and its own reader of variables is replaced, since that
takes numbers, dates and tables for what they look like: text stays text, and no value can run code.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gpustack.kit.errors import SettingsError
from gpustack.settings.option import ENV_PREFIX

if TYPE_CHECKING:
    from yaml import Node

#: Read by the command line itself, not by ``gpustack start``.
CLIENT_VARIABLES = frozenset({"SERVER", "API_KEY", "DEBUG"})
#: Read before there are options.
_BLOCK = "PLUGINS_BLOCK"
#: What is no option and known all the same.
OTHER_VARIABLES = CLIENT_VARIABLES | {_BLOCK}
#: What Kubernetes puts into every container for a service that is called gpustack, such as GPUSTACK_PORT=tcp://10.0.0.1:80.
_SERVICE_LINK = re.compile(r"(tcp|udp|sctp)://[0-9a-fA-F.:\[\]]+")
_SERVICE_NAME = re.compile(r"(.+_)?(SERVICE_(HOST|PORT)(_.*)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_.+)?)")

Kind = Literal["flag", "variable", "file"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """One value as it was given."""

    value: Any
    kind: Kind
    #: Where it came from, as a message names it.
    origin: str
    #: Of a file: the path and, by their place in the value, the lines of what is in it.
    file: str = ""
    lines: Mapping[tuple[str, ...], int] = field(default_factory=dict)

    def inside(self, name: str, place: Sequence[object]) -> str:
        """Return where what is at ``place`` in the value of option ``name`` came from; "" where only the whole is known."""
        words = tuple(map(str, place))
        known = [words[:length] for length in range(len(words), 0, -1) if words[:length] in self.lines]
        if not known:
            return ""
        return f"{shorten_key('.'.join((name, *words)))} in {self.file}, line {self.lines[known[0]]}"


class FileError(SettingsError):
    """The file as a whole cannot be used."""


def read_environment() -> dict[str, str]:
    """Return all variables of this process, as dynaconf took them over: raw text."""
    from dynaconf import Dynaconf

    found = Dynaconf(
        settings_files=[], loaders=[__name__], core_loaders=[], auto_cast=False, load_dotenv=False
    ).as_dict()
    variables: dict[str, str] = found["VARIABLES"]
    return dict(variables)


def load(obj: Any, *_: object, **__: object) -> None:
    """Be dynaconf's loader of variables. An empty one is how container tools say "not set"."""
    obj.set("VARIABLES", {name: text for name, text in os.environ.items() if text})


def blocked_plugins() -> frozenset[str]:
    """Return the names of plugins that GPUSTACK_PLUGINS_BLOCK keeps from being loaded, separated by commas.

    A name with a comma in it stands in double quotes. No option like the others: which options there are depends on it.
    """
    text = os.environ.get(f"{ENV_PREFIX}{_BLOCK}", "")
    # A variable may have several lines, and each is one of the CSV format.
    names = (name for line in csv.reader(text.splitlines(), skipinitialspace=True) for name in line)
    return frozenset(name.strip() for name in names if name.strip())


def is_service_link(text: str) -> bool:
    """Tell whether a variable's value comes from Kubernetes, which names it after a service and not after an option."""
    return bool(_SERVICE_LINK.fullmatch(text))


def is_of_kubernetes(name: str, text: str) -> bool:
    """Tell whether a variable that is no option is one that Kubernetes sets for a service."""
    return is_service_link(text) or bool(_SERVICE_NAME.fullmatch(name.removeprefix(ENV_PREFIX)))


def read_file(path: Path) -> dict[str, Given]:
    """Return the values of a YAML file by key. Raises FileError when it is none, or cannot be read."""
    from yaml import safe_load

    try:
        content = path.read_text(encoding="utf-8")
        # dynaconf upper-cases keys and merges silently: the keys as written are needed to name a wrong one.
        keys = safe_load(content)
    except OSError as error:
        raise FileError(f"--config-file {path} cannot be read: {error.strerror}") from error
    # Beside its own errors: what it makes values with raises anything for what is none, such as `!!timestamp x`.
    except Exception as error:
        raise _not_yaml(path, error) from error
    try:
        return _found(path, content, keys)
    # An integer with more digits than Python writes out.
    except ValueError as error:
        raise _not_yaml(path, error) from error


def _found(path: Path, content: str, keys: Any) -> dict[str, Given]:
    if keys is None:
        return {}
    if not isinstance(keys, dict):
        raise FileError(f"--config-file {path} must hold keys with values, such as `port: 80`")
    lines = _lines(path, content)
    raw = _through_dynaconf(path)
    return {
        str(key): Given(
            # What one of the two parsers takes for text is text: 1e5 is to the first, and `no` to dynaconf's.
            value=_plain(path, key, value if isinstance(value, str) else raw.get(str(key).upper(), value)),
            kind="file",
            origin=f"{shorten_key(key)} in {path}, line {lines.get((str(key),), 1)}",
            file=str(path),
            lines={place[1:]: line for place, line in lines.items() if place[0] == str(key) and place[1:]},
        )
        for key, value in keys.items()
    }


def _plain(path: Path, key: object, value: object) -> Any:
    """Return a value as JSON can hold it; dates are text again. Raises FileError for one that contains itself."""
    try:
        return json.loads(json.dumps(value, default=str))
    except (ValueError, TypeError, RecursionError) as error:
        raise FileError(
            f"--config-file {path}: {shorten_key(key)} is no plain value: {_why(error)}"
        ) from error


def shorten_key(key: object) -> str:
    """Return a key as a message has it."""
    text = str(key)
    short = text if len(text) <= 60 else text[:57] + "…"
    return short if short == text and text.isprintable() else repr(short)


def _through_dynaconf(path: Path) -> dict[str, Any]:
    from dynaconf import Dynaconf

    try:
        return dict(
            Dynaconf(
                settings_files=[str(path)],
                loaders=[],
                core_loaders=["YAML"],
                auto_cast=False,
                load_dotenv=False,
            ).as_dict()
        )
    except (ValueError, RecursionError) as error:
        raise _not_yaml(path, error) from error
    # It has a parser of its own, of another opinion here and there, and which quotes values in what it says.
    except Exception as error:
        raise FileError(
            f"--config-file {path} can be read in two ways; write what is special in it in quotes"
        ) from error


def _not_yaml(path: Path, error: Exception) -> FileError:
    where = getattr(error, "problem_mark", None)
    place = f" at line {where.line + 1}" if where else ""
    return FileError(f"--config-file {path} is not YAML{place}: {_why(error)}")


def _why(error: Exception) -> str:
    """Return what is wrong without the value: it may be a password, also one that begins with &, * or !."""
    if isinstance(error, RecursionError) or "Circular" in str(error):
        return "it is nested too deeply, or contains itself"
    if isinstance(error, UnicodeDecodeError):
        return "it is no UTF-8 text"
    if problem := getattr(error, "problem", None):
        return " ".join(re.sub(r"(alias|tag|anchor|handle) '.*'", r"\1", problem, flags=re.DOTALL).split())
    text = str(error)
    if "int_max_str_digits" in text:
        return "a number in it has too many digits"
    first = text.partition("\n")[0].partition("'")[0]
    return first.strip(": ") or "a value in it is not what it is said to be"


def _lines(path: Path, content: str) -> Mapping[tuple[str, ...], int]:
    """Return the line of each key and item, by where it lies.

    Raises FileError for a key that a mapping has twice: nobody can tell which is meant.
    """
    from yaml import SafeLoader, compose

    nodes: list[tuple[tuple[str, ...], Node | None]] = [((), compose(content, Loader=SafeLoader))]
    # An alias may lead into what it stands in.
    seen: set[int] = set()
    found: dict[tuple[str, ...], int] = {}
    while nodes:
        place, node = nodes.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        for name, line, value in _inner(node):
            inner = (*place, name)
            if inner in found:
                raise FileError(
                    f"--config-file {path} has {shorten_key(name)} twice, at lines {found[inner]} and {line}; "
                    "leave one out"
                )
            found[inner] = line
            nodes.append((inner, value))
    return found


def _inner(node: Node | None) -> Iterator[tuple[str, int, Node]]:
    from yaml import MappingNode, SequenceNode

    if isinstance(node, MappingNode):
        for key, value in node.value:
            yield str(key.value), key.start_mark.line + 1, value
    elif isinstance(node, SequenceNode):
        for number, value in enumerate(node.value):
            yield str(number), value.start_mark.line + 1, value
