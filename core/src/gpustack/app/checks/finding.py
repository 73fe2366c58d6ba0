"""What a check finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["problem", "warning", "hint"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line for people about the options with these names."""

    level: Level
    options: tuple[str, ...]
    text: str
