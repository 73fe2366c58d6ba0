"""Backends as YAML files: read with the line of what is wrong, and written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gpustack.kit.errors import InvalidInput
from gpustack.schemas.backends import InferenceBackendCreate, InferenceBackendPublic

#: Far more than a backend with all its versions has.
_MOST_VALUES = 20_000


def read_backend(text: str, where: Path | str) -> InferenceBackendCreate:
    """Return the backend in a YAML ``text``; ``where`` names it in messages.

    Raises InvalidInput with one line that has the number of the line at fault.
    """
    from gpustack.kit.yaml_places import located

    read = located(text, where, most=_MOST_VALUES)
    if not isinstance(read.document, dict):
        raise InvalidInput(f"{where}:1: a backend is a mapping that begins with backend_name")
    try:
        return InferenceBackendCreate.model_validate(read.document)
    except ValidationError as error:
        problem = error.errors()[0]
        place = tuple(each for each in problem["loc"] if each != "[key]")
        name = ".".join(map(str, place))
        line = f"{where}:{read.line(place)}: {name}: " if name else f"{where}:{read.line(place)}: "
        raise InvalidInput(line + _said(problem)) from error


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
        case "extra_forbidden":
            return "there is no such field"
        case "missing":
            return "it is missing"
        case "string_type" if isinstance(problem["input"], int | float):
            return "it is read as a number; put it into quotation marks"
        case "string_pattern_mismatch":
            return f"{problem['input']!r} has characters that cannot be there"
    return str(problem["msg"]).removeprefix("Value error, ")
