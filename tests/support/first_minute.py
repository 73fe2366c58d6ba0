"""The README's first minute: its commands, and the conversation that it shows."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
_SECTION = re.compile(r"^## The first minute\n(.*?)^## ", re.MULTILINE | re.DOTALL)
_BLOCK = re.compile(r"^```(bash|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Return the commands, without their comments."""
    return [line.partition("  #")[0].strip() for line in _block("bash").splitlines()]


def conversation() -> list[tuple[str, str]]:
    """Return the questions with the answers that are shown, each as one line."""
    turns = re.split(r"^> ", _block("text"), flags=re.MULTILINE)[1:]
    return [(question, " ".join(answer)) for question, *answer in (turn.splitlines() for turn in turns)]


def _block(kind: str) -> str:
    section = _SECTION.search((ROOT / "README.md").read_text(encoding="utf-8"))
    assert section is not None, "the README has no first minute"
    (block,) = (text for language, text in _BLOCK.findall(section[1]) if language == kind)
    return str(block)
