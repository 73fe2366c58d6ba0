"""JSON files beside a model's weights, read within bounds."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from gpustack.kit.errors import InvalidInput
from gpustack.kit.text import human_bytes

#: A tokenizer_config.json with thousands of special tokens has a few MB.
LIMIT = 32 << 20


def parse(data: bytes, path: Path, what: str) -> dict[str, Any]:
    """Return the JSON object in ``data``; InvalidInput names ``path`` and ``what`` was to be in it."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(
            f"{path} is damaged: {what} is not valid JSON; copy or download it again"
        ) from error
    if not isinstance(value, dict):
        raise InvalidInput(f"{path} is damaged: {what} is not a JSON object")
    return value


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object that the file holds; an empty one when there is no such file.

    Raises InvalidInput when it is too long or damaged; OSError passes through.
    """
    try:
        with path.open("rb") as file:
            # Reading sets aside what is asked for, so ask for what is there.
            data = file.read(min(os.fstat(file.fileno()).st_size, LIMIT) + 1)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    if len(data) > LIMIT:
        raise InvalidInput(f"{path} has more than {human_bytes(LIMIT)}; that is no file of a model")
    return parse(data, path, "it")


def section(value: dict[str, Any], key: str) -> dict[str, Any]:
    """Return the object under ``key``; an empty one when there is none or it is something else."""
    inner = value.get(key)
    return inner if isinstance(inner, dict) else {}
