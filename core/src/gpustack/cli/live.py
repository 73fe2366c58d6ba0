"""A list as it changes: drawn anew in place on a terminal, a line per change elsewhere. The watch tells; nobody polls."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import click

from gpustack.cli.output import clean, coloured, table_lines
from gpustack.cli.target import Connection, Target
from gpustack.kit.terminal import Screen, can_draw

if TYPE_CHECKING:
    from gpustack.schemas import Event
    from gpustack.schemas.common import Record

R = TypeVar("R", bound="Record")

#: Seconds between two drawings at least, and at most: ages go on growing.
_SOONEST, _LATEST = 0.25, 1.0
#: Seconds without the server after which lines end. Who looks at a terminal sees for himself.
_PATIENCE = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing(Generic[R]):
    """What is watched, and how it is shown."""

    path: str
    kind: type[R]
    headers: Sequence[str]
    row: Callable[[R], Sequence[object]]
    #: The line for one that changed.
    line: Callable[[R], str]
    #: The line above all.
    summary: Callable[[list[R]], str]
    #: The line for none.
    empty: str


@dataclass(slots=True)
class _Seen(Generic[R]):
    """What the watch has told so far."""

    listing: Listing[R]
    items: dict[int, R] = field(default_factory=dict)
    #: It has told everything that exists.
    whole: bool = False
    #: What is wrong with the connection, empty for nothing.
    trouble: str = ""

    def take(self, event: Event) -> None:
        from gpustack.schemas import EventType

        if event.type is EventType.HEARTBEAT:
            self.whole = True
        elif event.type is EventType.DELETED:
            self.items.pop(event.id, None)
        else:
            self.items[event.id] = self.listing.kind.model_validate(event.data)

    def lines(self, url: str) -> list[str]:
        """Return what fills a terminal."""
        size = get_terminal_size()
        items = sorted(self.items.values(), key=lambda each: str(getattr(each, "name", each.id)))
        head = f"{self.listing.summary(items)}   {url}   {time.strftime('%H:%M:%S')}   q ends"
        lines = [_shorten(head, size.columns), _shorten(self.trouble, size.columns)]
        if coloured():
            lines = [click.style(lines[0], bold=True), click.style(lines[1], fg="red") if lines[1] else ""]
        if items:
            lines += table_lines(
                self.listing.headers, [self.listing.row(each) for each in items], size.columns
            )
        else:
            lines.append(_shorten(self.listing.empty if self.whole else "Reading…", size.columns))
        if len(lines) > size.lines:
            left = len(lines) - size.lines + 1
            lines = [*lines[: size.lines - 1], f"… and {left} more"]
        return lines[: size.lines]


def watch(target: Target, listing: Listing[R], *, as_json: bool) -> int:
    """Show ``listing`` until it is ended: by q or Ctrl-C, or where there is no terminal by an error."""
    connection = target.connection()
    if as_json or not can_draw(sys.stdout):
        asyncio.run(_print(connection, listing, as_json=as_json))
    else:
        asyncio.run(_draw(connection, listing))
    return 0


async def _events(
    connection: Connection,
    listing: Listing[R],
    *,
    patience: float | None,
    on_state: Callable[[str], None] | None = None,
) -> AsyncGenerator[Event, None]:
    """Yield the watch's events for ever, through a GPUStack of this machine that is started again."""
    async with connection.client() as client:
        events = client.watch(listing.path, patience=patience, on_state=on_state)
        async with aclosing(events) as told:
            async for event in told:
                yield event


async def _print(connection: Connection, listing: Listing[R], *, as_json: bool) -> None:
    """Print a line for each change; with ``as_json`` the event as one JSON document."""
    from gpustack.schemas import EventType

    said: dict[int, str] = {}
    seen: _Seen[R] = _Seen(listing)
    async with aclosing(_events(connection, listing, patience=_PATIENCE)) as events:
        async for event in events:
            if event.type is EventType.HEARTBEAT:
                continue
            if as_json:
                click.echo(_document(event))
                continue
            before = seen.items.get(event.id)
            seen.take(event)
            gone = event.type is EventType.DELETED
            if gone and before is None:
                continue
            item = before if gone else seen.items[event.id]
            assert item is not None
            line = (
                f"{clean(str(getattr(item, 'name', item.id)))}  removed"
                if gone
                else clean(listing.line(item))
            )
            if said.get(event.id) != line:
                click.echo(f"{time.strftime('%H:%M:%S')}  {line}")
            said[event.id] = line


def _document(event: Event) -> str:
    document: dict[str, Any] = {"event": event.type.name.lower(), "id": event.id, **event.data}
    return json.dumps(document, ensure_ascii=False)


async def _draw(connection: Connection, listing: Listing[R]) -> None:
    seen: _Seen[R] = _Seen(listing)
    changed, ended = asyncio.Event(), asyncio.Event()

    def state(trouble: str) -> None:
        seen.trouble = f"{trouble}; connecting again" if trouble else ""
        changed.set()

    async def read() -> None:
        events = _events(connection, listing, patience=None, on_state=state)
        async with aclosing(events) as told:
            async for event in told:
                seen.take(event)
                changed.set()

    def typed(key: str) -> None:
        if key in "qQ\x04":
            ended.set()

    reading = asyncio.create_task(read(), name="live: watch")
    reading.add_done_callback(lambda _: ended.set())
    try:
        async with Screen(sys.stdout, on_key=typed, on_change=changed.set, on_end=ended.set) as screen:
            while not ended.is_set():
                changed.clear()
                screen.draw(seen.lines(connection.url))
                await _first(_SOONEST, ended)
                await _first(_LATEST - _SOONEST, changed, ended)
    finally:
        reading.cancel()
        with suppress(asyncio.CancelledError):
            await reading


async def _first(seconds: float, *events: asyncio.Event) -> None:
    """Return when one of ``events`` is set, or after ``seconds``."""
    waiting = [asyncio.create_task(each.wait()) for each in events]
    try:
        await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in waiting:
            each.cancel()


def _shorten(text: str, columns: int) -> str:
    text = clean(text)
    return text if len(text) <= columns else text[: max(0, columns - 1)] + "…"
