"""What llama.cpp says of its slots, at ``/slots``."""

from __future__ import annotations

import json
from typing import Any


def slots_in_use(answer: str) -> float | None:
    """Return the part of the context of all slots that requests hold, from 0 to 1; None for what tells nothing of it."""
    try:
        slots = json.loads(answer)
    except (ValueError, RecursionError):
        return None
    if not isinstance(slots, list) or not slots:
        return None
    total = used = 0
    for slot in slots:
        if not isinstance(slot, dict) or (size := _count(slot.get("n_ctx"))) <= 0:
            return None
        total += size
        if slot.get("is_processing") is True:
            decoded = slot.get("next_token")
            parts = decoded if isinstance(decoded, list) else [decoded]
            told = sum(_count(each.get("n_decoded")) for each in parts if isinstance(each, dict))
            used += min(size, _count(slot.get("n_prompt_tokens")) + told)
    return used / total


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0
