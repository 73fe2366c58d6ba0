"""Watching a list for good: the stream of events, through broken connections and restarts of the server.

A consumer sees one endless sequence of events and need not know about replays:

1. what exists when the watch begins arrives as CREATED;
2. then one HEARTBEAT: from here on the consumer's picture is whole;
3. then every change as it happens.

After a broken connection the watch goes on with ``since`` and nothing is repeated. When the server no longer
keeps the events in between (HTTP 410), or the replay itself was cut, the list is replayed: things seen before
arrive as UPDATED, new ones as CREATED, and those that have gone meanwhile as DELETED with an empty ``data``;
then HEARTBEAT again. So a consumer that treats CREATED and UPDATED alike, and drops on DELETED, is always right.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import httpx
from pydantic import ValidationError

from gpustack.client.transport import Gone, Transport
from gpustack.kit.backoff import Backoff
from gpustack.kit.errors import Throttled, Unavailable
from gpustack.schemas import Event, EventType

log = logging.getLogger(__name__)

#: The server sends a blank line every 15 s; three missed ones mean that nobody is there any more.
SILENCE = 45.0


async def lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Split ``chunks`` at newlines, whatever way they were cut; blank lines come as empty ones.

    Only ``\\n`` parts lines: JSON may hold U+2028 and its like unescaped. A last line without its newline was
    cut off and is left out.
    """
    rest = b""
    async for chunk in chunks:
        first, *more = chunk.split(b"\n")
        if not more:
            rest += first
            continue
        yield (rest + first).strip()
        for line in more[:-1]:
            yield line.strip()
        rest = more[-1]


@dataclass(slots=True)
class Watching:
    """How far a watch has come. ``known`` holds the ids a consumer has been told of and not seen deleted."""

    known: set[int] = field(default_factory=set)
    #: Where to go on; None asks for a replay.
    since: int | None = None
    #: Ids that the running replay has named; None when no replay is running.
    replayed: set[int] | None = None

    def begin(self) -> None:
        """A connection was opened."""
        self.replayed = None if self.since is not None else set()

    def forget(self) -> None:
        """The server no longer keeps what came after ``since``."""
        self.since = None

    def take(self, event: Event) -> list[Event]:
        """Return what the consumer sees for ``event``, in order."""
        if event.type is EventType.HEARTBEAT:
            gone = sorted(self.known - self.replayed) if self.replayed is not None else []
            self.known.difference_update(gone)
            self.replayed = None
            self.since = max(event.number, self.since or 0)
            return [
                *(Event(type=EventType.DELETED, id=each, data={}, number=event.number) for each in gone),
                event,
            ]
        if self.replayed is None:
            self.since = max(event.number, self.since or 0)
        else:
            # A replay names the number of its end on every line: going on from there would lose the rest.
            self.replayed.add(event.id)
            if event.id in self.known:
                event = event.model_copy(update={"type": EventType.UPDATED})
        if event.type is EventType.DELETED:
            self.known.discard(event.id)
        else:
            self.known.add(event.id)
        return [event]


async def watch(
    transport: Transport,
    path: str,
    params: Mapping[str, Any] | None = None,
    *,
    silence: float = SILENCE,
    patience: float | None = None,
    wait: Backoff | None = None,
    on_state: Callable[[str], None] | None = None,
) -> AsyncGenerator[Event, None]:
    """Yield the events of the list at ``path`` for ever; see the module for their order.

    Connection trouble is waited out with ``wait`` (0.5 to 15 s, doubling). With ``patience``, Unavailable is
    raised when the server stayed away for so many seconds in a row. What waiting cannot help raises at once:
    Unauthenticated, Forbidden, NotFound, InvalidInput. ``on_state`` is called with the trouble when the connection
    is lost, instead of a line in the log, and with "" when there is one.
    """
    progress, wait = Watching(), wait or Backoff(first=0.5, limit=15.0)
    heard = time.monotonic()
    while True:
        try:
            async with aclosing(_once(transport, path, params, progress, silence, on_state)) as events:
                async for event in events:
                    heard = time.monotonic()
                    wait.reset()
                    if event is not None:
                        yield event
            trouble: Exception = Unavailable(f"{transport.base_url} ended the watch", retry_after=0.0)
        except Gone:
            log.info("watch %s: older than what the server keeps, reading the list anew", path)
            progress.forget()
            trouble = Unavailable(f"{transport.base_url} keeps no events", retry_after=0.0)
        except (Unavailable, Throttled) as error:
            trouble = error
        away = time.monotonic() - heard
        if patience is not None and away >= patience:
            raise Unavailable(f"{trouble} (for {away:.0f} s)", retry_after=1.0) from trouble
        if on_state is not None:
            on_state(str(trouble))
        elif wait.failures == 1:
            log.warning("watch %s: %s; connecting again", path, trouble)
        # Spread out, so that a fleet does not come back to a restarted server at one instant.
        await asyncio.sleep(wait.next() * random.uniform(0.5, 1.0))


async def _once(
    transport: Transport,
    path: str,
    params: Mapping[str, Any] | None,
    progress: Watching,
    silence: float,
    on_state: Callable[[str], None] | None,
) -> AsyncGenerator[Event | None, None]:
    """Yield the events of one connection until it ends; None is a sign of life."""
    query = {**(params or {}), "watch": True, "since": progress.since}
    async with transport.stream("GET", path, params=query, read_timeout=silence) as response:
        progress.begin()
        if on_state is not None:
            on_state("")
        try:
            async for line in lines(response.aiter_bytes()):
                if not line:
                    yield None
                    continue
                event = _parsed(line, transport)
                if event.type is EventType.UNKNOWN:
                    # The server's last word before it ends this stream, such as that we were too slow.
                    said = event.data.get("message") or "no reason given"
                    raise Unavailable(f"{transport.base_url} ended the watch: {said}", retry_after=0.0)
                for each in progress.take(event):
                    yield each
        except httpx.HTTPError as error:
            raise transport.trouble(error) from error


def _parsed(line: bytes, transport: Transport) -> Event:
    try:
        return Event.model_validate_json(line)
    except ValidationError as error:
        text = f"{transport.base_url} answered with something that is not an event"
        raise Unavailable(text, retry_after=1.0) from error
