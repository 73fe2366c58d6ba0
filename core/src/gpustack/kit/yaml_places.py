"""Reads YAML and keeps the line of each value, so that a message can name it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gpustack.kit.errors import InvalidInput

#: Of names and numbers of lists, from the outside.
Place = tuple[str | int, ...]

#: Levels of lists and mappings in each other; more is no description of anything.
_DEEPEST = 50
_LARGEST = 64 * 1024 * 1024
#: Values: a few lines that refer to each other can stand for any number of them.
_MOST = 5_000_000


@dataclass(frozen=True, slots=True)
class Located:
    """A document, and the line of every value in it, counted from 1."""

    document: Any
    lines: dict[Place, int]

    def line(self, place: Place) -> int:
        """Return the line of a value, or of the nearest one around it that is there."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)


def read_text(path: Path) -> str:
    """Return what is in a file. Raises InvalidInput in one line when it cannot be read."""
    try:
        if path.stat().st_size > _LARGEST:
            raise InvalidInput(f"{path}: larger than {_LARGEST >> 20} MiB")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path}: no text in UTF-8") from error


def located(text: str, path: Path | str, *, most: int = _MOST) -> Located:
    """Return the document in ``text``, which may have ``most`` values.

    Raises InvalidInput with ``path``, line and reason when it is no YAML.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        lines = _Lines(most)
        document = None if node is None else _plain(node, (), lines, path)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}" if mark is not None else str(path)
        raise InvalidInput(f"{where}: {error.problem or error.context or 'no YAML'}") from error
    except yaml.YAMLError as error:
        raise InvalidInput(f"{path}: no YAML: {' '.join(str(error).split())}") from error
    if document is None:
        raise InvalidInput(f"{path}: nothing is in it")
    return Located(document, lines)


class _Lines(dict[Place, int]):
    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most


def _plain(node: yaml.Node, place: Place, lines: _Lines, path: Path | str) -> Any:
    lines[place] = node.start_mark.line + 1
    if len(lines) > lines.most:
        raise InvalidInput(f"{path}:{lines[place]}: more than {lines.most} values")
    if len(place) > _DEEPEST:
        raise InvalidInput(f"{path}:{lines[place]}: nested too deeply")
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*place, number), lines, path) for number, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        found: dict[str, Any] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise InvalidInput(f"{path}:{line}: a name is a text")
            if key.value in found:
                raise InvalidInput(f"{path}:{line}: {key.value} is there twice")
            found[key.value] = _plain(value, (*place, key.value), lines, path)
            lines[(*place, key.value)] = line
        return found
    return yaml.SafeLoader("").construct_object(node)
