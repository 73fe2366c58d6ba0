"""What all lists have in common: paging, searching, sorting, and watching instead."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, cast

import msgspec
from litestar import Response
from litestar.di import NamedDependency
from litestar.params import QueryParameter

from gpustack.db import StoredEvent, Subscription
from gpustack.kit.errors import GPUStackError, InvalidInput, NotFound
from gpustack.schemas import EventType, Page, Pagination
from gpustack.schemas.common import Record
from gpustack.server.auth.authenticate import still_allowed
from gpustack.server.auth.caller import Req
from gpustack.server.body import page as page_answer
from gpustack.server.body import page_text
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
        "then every change; a blank line every 15 s. Ends when the caller's credential does."
    ),
]
Since = Annotated[
    int | None,
    QueryParameter(
        ge=0, description="With `watch`: continue after this event number; 410 when that is too long ago."
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What of a list is asked for, in the query parameters that all lists have."""

    page: int = 1
    per_page: int = 100
    search: str | None = None
    sort_by: str | None = None
    watch: bool = False
    since: int | None = None


def selection_of(
    page: PageNumber = 1,
    per_page: PerPage = 100,
    search: Search = None,
    sort_by: SortBy = None,
    watch: Watch = False,
    since: Since = None,
) -> Selection:
    """Return the parameters of a request; a dependency, so that each handler names them once."""
    return Selection(page=page, per_page=per_page, search=search, sort_by=sort_by, watch=watch, since=since)


#: What a handler of a list declares as ``selection``.
Select = NamedDependency[Selection]

#: Seconds between the blank lines of a quiet watch.
KEEP_ALIVE = 15.0
#: How often a list is read again when events came in between, before duplicates are sorted out instead.
_TRIES = 5

ListAll = Callable[[], Coroutine[Any, Any, Page[R]]]


async def listed(
    request: Req,
    repository: Any,
    selection: Selection,
    *,
    topic: str,
    filters: Mapping[str, Any],
    find: Callable[..., Awaitable[Page[Any] | bytes]] | None = None,
) -> Response[Page[Any]]:
    """Return one page of ``repository``, or the watch of its ``topic``; ``filters`` hold fields and wanted values.

    ``find`` is asked for the page instead of the repository's ``list``, and may return it as JSON.
    """
    wanted = {name: value for name, value in filters.items() if value is not None}
    if selection.watch:
        if selection.search:
            raise InvalidInput("query parameter search: a watch shows everything; search in what it sends")
        return await watched(
            request, topic, lambda: repository.list(page=-1, **wanted), wanted, selection.since
        )
    _check_page(selection.page)
    found = await (find or repository.list)(
        page=selection.page,
        per_page=selection.per_page,
        search=selection.search,
        sort_by=selection.sort_by,
        **wanted,
    )
    return page_text(found) if isinstance(found, bytes) else page_answer(found)


def _check_page(page: int) -> None:
    if page == 0:
        raise InvalidInput("query parameter page: pages are counted from 1; -1 returns everything")


def paged(items: Sequence[T], *, page: int, per_page: int) -> Page[T]:
    """Return one page of what is in memory anyway."""
    part, pagination = page_of(items, page=page, per_page=per_page)
    return Page(items=part, pagination=pagination)


def page_of(items: Sequence[T], *, page: int, per_page: int) -> tuple[list[T], Pagination]:
    """Return what of ``items`` is on the page, and where that lies."""
    _check_page(page)
    total = len(items)
    if page == -1:
        return list(items), Pagination(page=1, perPage=0, total=total, totalPage=1)
    part = items[(page - 1) * per_page : page * per_page]
    pages = math.ceil(total / per_page)
    return list(part), Pagination(page=page, perPage=per_page, total=total, totalPage=pages)


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
        number, settled, items = await _snapshot(parts, topic, list_all)
        known = {item.id for item in items}
        replay = [_replayed(item, number) for item in items]
        replay.append(_line(EventType.HEARTBEAT, 0, {}, {}, number))

    def shown(event: StoredEvent) -> bytes | None:
        if event.number <= settled and event.type == EventType.CREATED and event.id in known:
            return None  # the replay had it
        return _event_line(event, filters)

    def subscribe() -> Subscription:
        return parts.feed.subscribe({topic}, since=number)

    pieces = _stream(replay, subscribe, shown, parts.closing, lambda: still_allowed(request))
    return cast("Response[Page[Any]]", Streamed(pieces, media_type="application/x-ndjson"))


async def _check_kept(parts: Services, since: int) -> None:
    try:
        await parts.store.events.after(since, limit=1)
    except NotFound as error:
        raise Gone(f"{error.message}; watch again without `since`") from error


async def _snapshot(parts: Services, topic: str, list_all: ListAll[R]) -> tuple[int, int, Sequence[R]]:
    """Return the event numbers before and after the list was read, and the list.

    The two are equal unless events of ``topic`` kept coming in between, and then the stream starts at the first.
    """
    events = parts.store.events
    before = await events.last_number()
    for attempt in range(_TRIES):
        items = (await list_all()).items
        after = await events.last_number()
        # When a fleet comes back at once there are always events, but hardly any of the topic.
        if before == after or not await events.some(topic, after=before, until=after):
            return after, after, items
        if attempt == _TRIES - 1:
            return before, after, items
        before = after
    raise AssertionError("not reached")


async def _stream(
    replay: list[bytes],
    subscribe: Callable[[], Subscription],
    shown: Callable[[StoredEvent], bytes | None],
    closing: asyncio.Event,
    allowed: Callable[[], Awaitable[bool]],
) -> AsyncGenerator[bytes, None]:
    for start in range(0, len(replay), 100):
        yield b"".join(replay[start : start + 100])
    events = subscribe()
    ended = asyncio.ensure_future(closing.wait())
    upcoming: asyncio.Future[StoredEvent] | None = None
    clock = asyncio.get_running_loop().time
    due = clock() + KEEP_ALIVE
    try:
        while not closing.is_set():
            upcoming = upcoming or asyncio.ensure_future(anext(events))
            waiting: set[asyncio.Future[Any]] = {upcoming, ended}
            await asyncio.wait(waiting, timeout=max(0.0, due - clock()), return_when=asyncio.FIRST_COMPLETED)
            if not closing.is_set() and clock() >= due:
                if not await allowed():
                    return  # the client comes back and is told why
                yield b"\n"
                due = clock() + KEEP_ALIVE
            if not upcoming.done():
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
    shows = all(_passes(event.data, name, value) for name, value in filters.items())
    kind = event.type
    if kind is EventType.UPDATED and filters:
        before = event.data | {name: values[0] for name, values in event.changed_fields.items()}
        showed = all(_passes(before, name, value) for name, value in filters.items())
        if shows != showed:
            kind = EventType.CREATED if shows else EventType.DELETED
            shows = True
    return _line(kind, event.id, event.data, event.changed_fields, event.number) if shows else None


def _passes(data: Mapping[str, Any], name: str, value: Any) -> bool:
    """Tell whether a filter lets a thing pass: an instance is on the workers of all its members."""
    if data.get(name) == value:
        return True
    return name == "worker_id" and any(each["worker_id"] == value for each in data.get("members", ()))


def _line(kind: EventType, identity: int, data: Any, changed: Any, number: int) -> bytes:
    document = {"type": int(kind), "id": identity, "data": data, "changed_fields": changed, "number": number}
    return msgspec.json.encode(document) + b"\n\n"
