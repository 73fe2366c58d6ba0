"""Backends as YAML files: read with the line of what is wrong, and written."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from gpustack.kit.errors import InvalidInput
from gpustack.schemas.backends import InferenceBackendCreate, InferenceBackendPublic, lacking

if TYPE_CHECKING:
    from gpustack.kit.yaml_places import Located

#: Far more than a backend with all its versions has.
_MOST_VALUES = 20_000


def read_backend(
    text: str, where: Path | str, plugins: Container[str] | None = None
) -> InferenceBackendCreate:
    """Return the backend in a YAML ``text``; ``where`` names it in messages.

    ``plugins`` are the backends that need not say how they are run; None when they are not known.
    Raises InvalidInput with one line that has the number of the line at fault.
    """
    from gpustack.kit.yaml_places import located

    read = located(text, where, most=_MOST_VALUES)
    if not isinstance(read.document, dict):
        raise InvalidInput(f"{where}:1: a backend is a mapping that begins with backend_name")
    try:
        wanted = InferenceBackendCreate.model_validate(read.document)
    except ValidationError as error:
        problem = error.errors()[0]
        place = tuple(each for each in problem["loc"] if each != "[key]")
        raise _at(place, _said(problem), read, where) from error
    if plugins is not None and wanted.backend_name not in plugins and (found := lacking(wanted)):
        raise _at(*found, read, where)
    return wanted


def _at(place: tuple[Any, ...], what: str, read: Located, where: Path | str) -> InvalidInput:
    name = "".join(f"{each}: " for each in [".".join(map(str, place))] if each)
    return InvalidInput(f"{where}:{read.line(place)}: {name}{what}")


def write_backend(backend: InferenceBackendPublic) -> str:
    """Return ``backend`` as a YAML text that :func:`read_backend` reads; what says nothing is left out."""
    import yaml

    described = backend.model_dump(mode="json", include=set(InferenceBackendCreate.model_fields))
    described["version_configs"] = {
        version: _filled(config.model_dump(mode="json"))
        for version, config in backend.version_configs.items()
    }
    kept = {name: value for name, value in described.items() if value}
    text: str = yaml.safe_dump(kept, sort_keys=False, allow_unicode=True, width=1_000)
    return text


def _filled(config: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if value and (name, value) != ("runner", "process")}


def _said(problem: Any) -> str:
    match problem["type"]:
        case "literal_error":
            return f"it is {problem['input']!r}, and can be {problem['ctx']['expected']}"
        case "extra_forbidden":
            return "there is no such field"
        case "missing":
            return "it is missing"
        case "string_type" if isinstance(problem["input"], int | float):
            return "it is read as a number; put it into quotation marks"
        case "string_pattern_mismatch":
            return f"{problem['input']!r} has characters that cannot be there"
    return str(problem["msg"]).removeprefix("Value error, ")
