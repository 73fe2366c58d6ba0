"""Reads what a stand-in is to be from a YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from gpustack.plugin import PluginError

M = TypeVar("M", bound=BaseModel)


def described(path: Path, model: type[M]) -> M:
    """Return what the file says; an empty one says nothing. Raises PluginError with one line: where, and what is wrong."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise PluginError(f"{path} cannot be read: {why}") from error
    return understood(text, model, name=str(path))


def understood(text: str, model: type[M], *, name: str) -> M:
    """Return what a YAML text says, which a message calls ``name``. Raises PluginError as :func:`described` does."""
    try:
        document = yaml.safe_load(text)
        return model.model_validate({} if document is None else document)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise PluginError(
            f"{name}{where}: this is no YAML: {getattr(error, 'problem', None) or 'unreadable'}"
        ) from error
    except ValidationError as error:
        raise PluginError(f"{name}: {_problem(error)}") from error


def _problem(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "the whole"
    what = first["msg"].removeprefix("Value error, ")
    return f"{where}: {what[0].lower()}{what[1:]}".replace("\n", " ")
