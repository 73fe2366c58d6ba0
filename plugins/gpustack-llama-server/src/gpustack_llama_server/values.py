"""How the text behind a flag becomes the value that llama.cpp wants.

Each function takes the ``xllamacpp`` module, the present value of the setting, and the text. They raise
ValueError with what is allowed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

Convert = Callable[[Any, Any, str], Any]

_SPECULATIVE = "COMMON_SPECULATIVE_TYPE_"
CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")


def integer(_module: Any, _now: Any, text: str) -> int:
    """A whole number."""
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a whole number") from None


def number(_module: Any, _now: Any, text: str) -> float:
    """A number."""
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number") from None


def inverse(_module: Any, _now: Any, text: str) -> float:
    """1 / a number: a scale given as a factor."""
    value = number(_module, _now, text)
    if value <= 0:
        raise ValueError(f"{text!r} is not a positive number")
    return 1.0 / value


def string(_module: Any, _now: Any, text: str) -> str:
    """The text itself."""
    return text


def file_content(_module: Any, _now: Any, text: str) -> str:
    """What the named file holds."""
    try:
        return Path(text).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{text} cannot be read ({error})") from None


def true(_module: Any, _now: Any, _text: str) -> bool:
    """A flag that turns something on."""
    return True


def false(_module: Any, _now: Any, _text: str) -> bool:
    """A flag that turns something off."""
    return False


def memory_lock(module: Any, now: Any, _text: str) -> Any:
    """Keep the model in RAM; new versions have a mode for it."""
    return True if isinstance(now, bool) else module.llama_load_mode.LLAMA_LOAD_MODE_MLOCK


def no_memory_map(module: Any, now: Any, _text: str) -> Any:
    """Read the model instead of mapping it; new versions have a mode for it."""
    return False if isinstance(now, bool) else module.llama_load_mode.LLAMA_LOAD_MODE_NONE


#: Conversions of flags that stand alone.
ALONE: tuple[Convert, ...] = (true, false, memory_lock, no_memory_map)


def switch(_module: Any, _now: Any, text: str) -> bool:
    """``on`` or ``off``."""
    if text not in ("on", "off"):
        raise ValueError(f"{text!r} is neither on nor off")
    return text == "on"


def names(_module: Any, now: Any, text: str) -> Any:
    """A list given with commas. Old versions take one text; a text given for a list is read letter by letter."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    return parts[0] if isinstance(now, str) and parts else parts


def more_names(_module: Any, now: Any, text: str) -> list[str]:
    """More items for a list."""
    return [*now, *(part.strip() for part in text.split(",") if part.strip())]


def names_of_file(_module: Any, now: Any, text: str) -> list[str]:
    """More items for a list, one on each line of the named file."""
    lines = file_content(_module, now, text).splitlines()
    return [*now, *(line.strip() for line in lines if line.strip() and not line.startswith("#"))]


def gpu_layers(_module: Any, _now: Any, text: str) -> int:
    """A number of layers, ``auto`` or ``all``."""
    return {"auto": -1, "all": 999}.get(text) or integer(_module, _now, text)


def shares(_module: Any, now: Any, text: str) -> list[float]:
    """One share for each GPU; llama.cpp wants a list of fixed length, filled up with zeros."""
    parts = [number(_module, now, part) for part in text.replace("/", ",").split(",")]
    if len(parts) > len(now):
        raise ValueError(f"{len(parts)} shares are too many, llama.cpp takes {len(now)}")
    return parts + [0.0] * (len(now) - len(parts))


def lora(module: Any, now: Any, text: str) -> list[Any]:
    """More adapter files, each at full strength."""
    return [*now, *(module.CommonAdapterLoraInfo(_existing(path), 1.0) for path in text.split(","))]


def lora_scaled(module: Any, now: Any, text: str) -> list[Any]:
    """More adapter files, each as ``FILE:SCALE``."""
    made = list(now)
    for part in text.split(","):
        path, colon, scale = part.rpartition(":")
        if not colon:
            raise ValueError(f"{part!r} is not FILE:SCALE")
        made.append(module.CommonAdapterLoraInfo(_existing(path), number(module, now, scale)))
    return made


def existing_file(_module: Any, _now: Any, text: str) -> str:
    """The path of a file that exists."""
    return _existing(text)


def template_values(_module: Any, _now: Any, text: str) -> dict[str, str]:
    """A JSON object; llama.cpp keeps each value as JSON text."""
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    return {key: json.dumps(value) for key, value in content.items()}


def one_of(enumeration: str, prefix: str, **other: str) -> Convert:
    """Return a conversion to a member of an enumeration; ``other`` are further words for members."""

    def convert(module: Any, _now: Any, text: str) -> Any:
        members = getattr(module, enumeration).__members__
        name = prefix + other.get(text.lower(), text).upper()
        if name not in members:
            known = sorted({each.removeprefix(prefix).lower() for each in members} - {"count", "max_value"})
            raise ValueError(f"{text!r} is none of {', '.join(known)}")
        return members[name]

    return convert


def cache_type(module: Any, now: Any, text: str) -> Any:
    """A type that llama.cpp can keep keys and values in; with others it would abort."""
    if text.lower() not in CACHE_TYPES:
        raise ValueError(f"{text!r} is none of {', '.join(CACHE_TYPES)}")
    return one_of("ggml_type", "GGML_TYPE_")(module, now, text)


def flash_attention(module: Any, now: Any, text: str) -> Any:
    """``on``, ``off`` or ``auto``; old versions know on and off."""
    if isinstance(now, bool):
        return text not in ("off", "0", "false")
    words = {"on": "enabled", "1": "enabled", "true": "enabled", "off": "disabled", "0": "disabled"}
    convert = one_of("llama_flash_attn_type", "LLAMA_FLASH_ATTN_TYPE_", **words, false="disabled")
    return convert(module, now, text)


def speculation(module: Any, _now: Any, text: str) -> list[Any]:
    """Ways to guess ahead, given with commas."""
    one = one_of("common_speculative_type", _SPECULATIVE)
    return [one(module, None, part.strip().replace("-", "_")) for part in text.split(",")]


def use_draft(module: Any, params: Any) -> None:
    """Have a draft model that was named guess ahead: new versions would load it, and then not ask it anything."""
    kinds = getattr(module, "common_speculative_type", None)
    speculative = params.speculative
    if kinds is None or not hasattr(speculative, "types") or not speculative.draft.mparams.path:
        return
    members = kinds.__members__
    if set(speculative.types) <= {members[f"{_SPECULATIVE}NONE"]}:
        speculative.types = [members[f"{_SPECULATIVE}DRAFT_SIMPLE"]]


def _existing(path: str) -> str:
    if not Path(path).is_file() or not os.access(path, os.R_OK):
        raise ValueError(f"{path} is not a readable file")
    return path
