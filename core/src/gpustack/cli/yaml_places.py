"""YAML files that were named on the command line: what is wrong with one is wrong usage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gpustack.cli.usage import WrongUsage
from gpustack.kit import yaml_places
from gpustack.kit.errors import InvalidInput
from gpustack.kit.yaml_places import Located, Place

__all__ = ["Located", "Place", "as_usage", "located", "read_text"]


def read_text(path: Path) -> str:
    """Return what is in a file. Raises WrongUsage in one line when it cannot be read."""
    with as_usage():
        return yaml_places.read_text(path)


def located(text: str, path: Path) -> Located:
    """Return the document in ``text``. Raises WrongUsage with file, line and reason when it is no YAML."""
    with as_usage():
        return yaml_places.located(text, path)


@contextmanager
def as_usage() -> Iterator[None]:
    """Make WrongUsage of what is wrong with a file."""
    try:
        yield
    except InvalidInput as error:
        raise WrongUsage(error.message) from error
