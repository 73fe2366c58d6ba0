"""Options and keys that have a successor: they work, and a warning names it."""

from __future__ import annotations

import json
from collections.abc import MutableMapping
from importlib.metadata import PackageNotFoundError, version

from gpustack.settings.declared import Options
from gpustack.settings.sources import Given

#: Keys of ``system_reserved``, and what they are called now.
_RESERVED = {"memory": "ram", "gpu_memory": "vram"}
#: The hub's client has no hf_transfer from this version on.
_WITHOUT_TRANSFER = 1


def take_successors(given: MutableMapping[str, Given], options: Options) -> list[str]:
    """Put what stands under an old name under the new one, and return a line for each."""
    warnings = []
    for name in [name for name in given if options[name].option.successor]:
        old, successor = given.pop(name), options[name].option.successor
        new = given.get(successor)
        if new is None:
            given[successor] = old
            warnings.append(f"{old.origin} is deprecated; use {options[successor].flag} ({successor})")
        else:
            warnings.append(f"{old.origin} is deprecated and not used, since {new.origin} is given")
    warnings += _reserved(given)
    warnings += _transfer(given)
    return warnings


def _reserved(given: MutableMapping[str, Given]) -> list[str]:
    item = given.get("system_reserved")
    if item is None:
        return []
    value = item.value
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return []  # the check says what is wrong with it
    if not isinstance(value, dict):
        return []
    old = [key for key in _RESERVED if key in value]
    if not old:
        return []
    renamed = {_RESERVED.get(key, key): amount for key, amount in value.items() if key not in _RESERVED}
    renamed = {**{_RESERVED[key]: value[key] for key in old}, **renamed}
    given["system_reserved"] = Given(value=renamed, kind=item.kind, origin=item.origin)
    verb = "are" if len(old) > 1 else "is"
    new = " and ".join(_RESERVED[key] for key in old)
    return [f"{item.origin}: {' and '.join(old)} {verb} deprecated; use {new}"]


def _transfer(given: MutableMapping[str, Given]) -> list[str]:
    item = given.get("enable_hf_transfer")
    if item is None or item.value is not True or _hub_version() < _WITHOUT_TRANSFER:
        return []
    line = (
        f"{item.origin}: the Hugging Face client no longer has hf_transfer, so GPUStack takes more connections "
        "instead; --enable-hf-xet is its successor"
    )
    return [line]


def _hub_version() -> int:
    try:
        return int(version("huggingface_hub").split(".")[0])
    except (PackageNotFoundError, ValueError):
        return 0
