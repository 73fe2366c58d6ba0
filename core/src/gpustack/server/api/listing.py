"""What all lists have in common: paging, searching, sorting, and watching instead."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from typing import Annotated, Any, TypeVar, cast

import msgspec
from litestar import Response
from litestar.params import QueryParameter

from gpustack.db import StoredEvent, Subscription
from gpustack.kit.errors import GPUStackError, InvalidInput, NotFound
from gpustack.schemas import EventType, Page, Pagination
from gpustack.schemas.common import Record
from gpustack.server.auth.caller import Req
from gpustack.server.body import page as page_answer
from gpustack.server.errors import Gone
from gpustack.server.services import Services, services
from gpustack.server.streams import Streamed

R = TypeVar("R", bound=Record)
T = TypeVar("T")

PageNumber = Annotated[
    int, QueryParameter(ge=-1, description="Counted from 1; -1 returns everything on one page.")
]
PerPage = Annotated[int, QueryParameter(name="perPage", ge=1, le=1000, description="Items on a page.")]
Search = Annotated[str | None, QueryParameter(max_length=256, description="Part of the name.")]
SortBy = Annotated[
    str | None,
    QueryParameter(max_length=256, description="Fields by comma, with `-` in front for descending."),
]
Watch = Annotated[
    bool,
    QueryParameter(
        description="Stream events as JSON lines instead: what exists as CREATED, a HEARTBEAT at the end of that, "
        "then every change; a blank line every 15 s."
    ),
]
Since = Annotated[
    int | None,
    QueryParameter(
        ge=0, description="With `watch`: continue after this event number; 410 when that is too long ago."
    ),
]

#: Seconds between the blank lines of a quiet watch.
KEEP_ALIVE = 15.0
#: How often a list is read again when events came in between, before duplicates are sorted out instead.
_TRIES = 5

ListAll = Callable[[], Coroutine[Any, Any, Page[R]]]


async def listed(
    request: Req,
    repository: Any,
    *,
    topic: str,
    page: int,
    per_page: int,
    search: str | None,
    sort_by: str | None,
    watch: bool,
    since: int | None,
    filters: Mapping[str, Any],
) -> Response[Page[Any]]:
    """Return one page of ``repository``, or the watch of its ``topic``; ``filters`` hold fields and wanted values."""
    wanted = {name: value for name, value in filters.items() if value is not None}
    if watch:
        return await watched(
            request, topic, lambda: repository.list(page=-1, search=search, **wanted), wanted, since
        )
    if page == 0:
        raise InvalidInput("query parameter page: pages are counted from 1; -1 returns everything")
    found = await repository.list(page=page, per_page=per_page, search=search, sort_by=sort_by, **wanted)
    return page_answer(found)


def paged(items: Sequence[T], *, page: int, per_page: int) -> Page[T]:
    """Return one page of what is in memory anyway."""
    if page == 0:
        raise InvalidInput("query parameter page: pages are counted from 1; -1 returns everything")
    total = len(items)
    if page == -1:
        return Page(items=list(items), pagination=Pagination(page=1, perPage=0, total=total, totalPage=1))
    part = items[(page - 1) * per_page : page * per_page]
    pages = math.ceil(total / per_page)
    return Page(
        items=list(part), pagination=Pagination(page=page, perPage=per_page, total=total, totalPage=pages)
    )


async def watched(
    request: Req, topic: str, list_all: ListAll[Any], filters: Mapping[str, Any], since: int | None
) -> Response[Page[Any]]:
    """Return the stream of ``topic``: a replay and then changes, or changes after number ``since``."""
    parts = services(request)
    replay: list[bytes] = []
    known: set[int] = set()
    number = since or 0
    settled = number
    if since is not None:
        await _check_kept(parts, since)
    else:
        number, settled, items = await _snapshot(parts, list_all)
        known = {item.id for item in items}
        replay = [_replayed(item, number) for item in items]
        replay.append(_line(EventType.HEARTBEAT, 0, {}, {}, number))

    def shown(event: StoredEvent) -> bytes | None:
        if event.number <= settled and event.type == EventType.CREATED and event.id in known:
            return None  # the replay had it
        return _event_line(event, filters)

    def subscribe() -> Subscription:
        return parts.feed.subscribe({topic}, since=number)

    pieces = _stream(replay, subscribe, shown, parts.closing)
    return cast("Response[Page[Any]]", Streamed(pieces, media_type="application/x-ndjson"))


async def _check_kept(parts: Services, since: int) -> None:
    try:
        await parts.store.events.after(since, limit=1)
    except NotFound as error:
        raise Gone(f"{error.message}; watch again without `since`") from error


async def _snapshot(parts: Services, list_all: ListAll[R]) -> tuple[int, int, Sequence[R]]:
    """Return the event numbers before and after the list was read, and the list.

    The two are equal unless events kept coming in between, and then the stream starts at the first.
    """
    for attempt in range(_TRIES):
        before = await parts.store.events.last_number()
        items = (await list_all()).items
        after = await parts.store.events.last_number()
        if before == after or attempt == _TRIES - 1:
            return before, after, items
    raise AssertionError("not reached")


async def _stream(
    replay: list[bytes],
    subscribe: Callable[[], Subscription],
    shown: Callable[[StoredEvent], bytes | None],
    closing: asyncio.Event,
) -> AsyncGenerator[bytes, None]:
    for start in range(0, len(replay), 100):
        yield b"".join(replay[start : start + 100])
    events = subscribe()
    ended = asyncio.ensure_future(closing.wait())
    upcoming: asyncio.Future[StoredEvent] | None = None
    try:
        while not closing.is_set():
            upcoming = upcoming or asyncio.ensure_future(anext(events))
            waiting: set[asyncio.Future[Any]] = {upcoming, ended}
            await asyncio.wait(waiting, timeout=KEEP_ALIVE, return_when=asyncio.FIRST_COMPLETED)
            if not upcoming.done():
                if not closing.is_set():
                    yield b"\n"
                continue
            done, upcoming = upcoming, None
            try:
                line = shown(done.result())
            except StopAsyncIteration:
                return
            except GPUStackError as error:
                yield _line(EventType.UNKNOWN, 0, {"message": error.message}, {}, 0)
                return
            if line is not None:
                yield line
    finally:
        left = [each for each in (ended, upcoming) if each is not None]
        for each in left:
            each.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        events.close()


def _replayed(item: Record, number: int) -> bytes:
    document = item.__pydantic_serializer__.to_json(item)
    return b'{"type":1,"id":%d,"data":%b,"changed_fields":{},"number":%d}\n\n' % (item.id, document, number)


def _event_line(event: StoredEvent, filters: Mapping[str, Any]) -> bytes | None:
    """Return the line of an event; None when it is about something else than ``filters`` ask for.

    What enters the filtered set is CREATED for this watcher, and what leaves it, such as an instance that moves to
    another worker, is DELETED.
    """
    shows = all(event.data.get(name) == value for name, value in filters.items())
    kind = event.type
    if kind is EventType.UPDATED and filters:
        before = {name: event.changed_fields.get(name, [event.data.get(name)])[0] for name in filters}
        showed = before == dict(filters)
        if shows != showed:
            kind = EventType.CREATED if shows else EventType.DELETED
            shows = True
    return _line(kind, event.id, event.data, event.changed_fields, event.number) if shows else None


def _line(kind: EventType, identity: int, data: Any, changed: Any, number: int) -> bytes:
    document = {"type": int(kind), "id": identity, "data": data, "changed_fields": changed, "number": number}
    return msgspec.json.encode(document) + b"\n\n"
