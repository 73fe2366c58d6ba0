"""Reads YAML and keeps the line of each value, so that a message can name it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gpustack.cli.usage import WrongUsage

#: Of names and numbers of lists, from the outside.
Place = tuple[str | int, ...]

#: Levels of lists and mappings in each other; more is no description of anything.
_DEEPEST = 50
_LARGEST = 64 * 1024 * 1024


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
    """Return what is in a file. Raises WrongUsage in one line when it cannot be read."""
    try:
        if path.stat().st_size > _LARGEST:
            raise WrongUsage(f"{path}: larger than {_LARGEST >> 20} MiB")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise WrongUsage(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise WrongUsage(f"{path}: no text in UTF-8") from error


def located(text: str, path: Path) -> Located:
    """Return the document in ``text``. Raises WrongUsage with file, line and reason when it is no YAML."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        lines: dict[Place, int] = {}
        document = None if node is None else _plain(node, (), lines, path)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}" if mark is not None else str(path)
        raise WrongUsage(f"{where}: {error.problem or error.context or 'no YAML'}") from error
    except yaml.YAMLError as error:
        raise WrongUsage(f"{path}: no YAML: {' '.join(str(error).split())}") from error
    if document is None:
        raise WrongUsage(f"{path}: nothing is in it")
    return Located(document, lines)


def _plain(node: yaml.Node, place: Place, lines: dict[Place, int], path: Path) -> Any:
    lines[place] = node.start_mark.line + 1
    if len(place) > _DEEPEST:
        raise WrongUsage(f"{path}:{lines[place]}: nested too deeply")
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*place, number), lines, path) for number, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        found: dict[str, Any] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise WrongUsage(f"{path}:{line}: a name is a text")
            if key.value in found:
                raise WrongUsage(f"{path}:{line}: {key.value} is there twice")
            found[key.value] = _plain(value, (*place, key.value), lines, path)
            lines[(*place, key.value)] = line
        return found
    return yaml.SafeLoader("").construct_object(node)
