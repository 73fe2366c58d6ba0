"""What commands print: tables for people, JSON for programs. Light, so that listings start quickly."""

from __future__ import annotations

import json
import os
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pydantic import BaseModel

_GAP = "  "
#: What a column is not made narrower than to fit a terminal.
_NARROWEST = 8


def on_terminal() -> bool:
    """Tell whether standard output is a terminal that colours and redrawing suit."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def coloured() -> bool:
    """Tell whether to colour; https://no-color.org turns it off."""
    return on_terminal() and not os.environ.get("NO_COLOR")


def emit_json(value: Any) -> None:
    """Print ``value`` as JSON and nothing else."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def emit_documents(documents: Iterable[BaseModel]) -> None:
    """Print the API's own documents as a JSON list."""
    emit_json([document.model_dump(mode="json") for document in documents])


def note(text: str) -> None:
    """Tell the user something that is not the command's result."""
    click.echo(text, err=True)


def emit_table(headers: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """Print a table; ``empty`` is the line for none. Wide columns are cut to fit a terminal, never a pipe."""
    lines = table_lines(headers, [*rows], get_terminal_size().columns if on_terminal() else None)
    if len(lines) == 1:
        note(empty)
        return
    for line in lines:
        click.echo(line)


def table_lines(headers: Sequence[str], rows: Sequence[Sequence[object]], columns: int | None) -> list[str]:
    """Return the lines of a table, cut to ``columns`` unless that is None; the first holds the headers."""
    cells = [[clean(str(cell)) for cell in row] for row in rows]
    widths = [max(_width(row[column]) for row in [headers, *cells]) for column in range(len(headers))]
    if columns is not None:
        widths = _fitted(widths, columns)
    head = _line(headers, widths)
    return [click.style(head, bold=True) if coloured() else head, *(_line(row, widths) for row in cells)]


def _fitted(widths: Sequence[int], columns: int) -> list[int]:
    """Return ``widths`` with the widest columns narrowed to fit; the first stays whole: a name is to be copied."""
    first, *others = widths
    room = columns - first - len(_GAP) * len(others)
    while sum(others) > room and max(others) > _NARROWEST:
        widest = max(range(len(others)), key=lambda column: (others[column], column))
        others[widest] -= 1
    return [first, *others]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    cut = [_cut(cell, width) for cell, width in zip(cells, widths, strict=True)]
    padded = [cell + " " * (width - _width(cell)) for cell, width in zip(cut, widths, strict=True)]
    return _GAP.join(padded).rstrip()


def _cut(text: str, room: int) -> str:
    if _width(text) <= room:
        return text
    while text and _width(text) > room - 1:
        text = text[:-1]
    return text + "…"


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def clean(text: str, *, keep: str = "") -> str:
    """Return ``text`` without control characters, which could drive the terminal; those in ``keep`` stay."""
    return "".join(char for char in text if char in keep or unicodedata.category(char) not in ("Cc", "Cf"))


def first_line(text: str) -> str:
    """Return the first line of ``text``, empty for none."""
    return text.split("\n", 1)[0]


def age(since: datetime | None) -> str:
    """Return how long ago ``since`` was, as in ``3m``; ``-`` for never."""
    return "-" if since is None else duration((datetime.now(UTC) - since).total_seconds())


def duration(seconds: float) -> str:
    """Return seconds in the largest unit that fits: ``12s``, ``3m``, ``5h``, ``9d``."""
    # The clocks of two machines differ a little.
    seconds = max(0.0, seconds)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s"
