"""Writes down what the scheduler decides, many decisions at a time, and reads it again."""

from __future__ import annotations

import asyncio
import base64
import logging
import zlib
from collections.abc import AsyncGenerator, Iterable, Mapping
from types import TracebackType
from typing import NoReturn, Self
from uuid import uuid4

import msgspec

from gpustack.db import Store
from gpustack.db.repositories.decisions import Decided, NewPage, Spot
from gpustack.kit.errors import GPUStackError
from gpustack.kit.tasks import Tasks
from gpustack.scheduling import Placed
from gpustack.scheduling.records import Entry, RecordedFleet, Replay, Taken, outline

log = logging.getLogger(__name__)

#: Decisions of one page. They are written together, a second after the first at the latest.
_PAGE = 500
#: How hard pages are compressed: the least is a third larger than the most, and many times faster.
_FAST = 1
#: Seconds that the end of the server waits for the last of them.
_LAST_WORD = 2.0


class DecisionLog:
    """Writes the decisions of ``fleet`` while the context is open.

    What cannot be written waits for the database, in memory and up to a bound; beyond it decisions are lost, and the
    record begins anew with the whole fleet.
    """

    def __init__(self, store: Store, fleet: RecordedFleet, *, every: float = 1.0) -> None:
        self._store = store
        self._fleet = fleet
        self._every = every
        self._run_id = uuid4().hex
        self._decided = asyncio.Event()
        self._full = asyncio.Event()
        self._in_hand: list[Taken] = []
        self._unwritten: list[NewPage] = []
        #: Pages that were made.
        self._made = 0
        self._writing = asyncio.Lock()
        self._tasks = Tasks("decisions")

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        self._fleet.on_decision = self._on_decision
        self._tasks.start("write", self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._fleet.on_decision = lambda: None
        await self._tasks.__aexit__(kind, error, trace)
        if self._store.away:
            return
        try:
            async with asyncio.timeout(_LAST_WORD):
                await self.flush()
        except GPUStackError as trouble:
            log.warning("the last decisions are not written down: %s", trouble)
        except TimeoutError:
            log.warning("the last decisions are not written down: the database is slow")

    def _on_decision(self) -> None:
        self._decided.set()
        if self._fleet.waiting >= _PAGE:
            self._full.set()

    async def _run(self) -> NoReturn:
        while True:
            await self._decided.wait()
            try:
                async with asyncio.timeout(self._every):
                    await self._full.wait()
            except TimeoutError:
                pass
            try:
                await self.flush()
            except GPUStackError as error:
                log.warning("decisions cannot be written down now and are tried again: %s", error)
                await self._store.returned()
                await asyncio.sleep(self._every)

    async def flush(self) -> None:
        """Write what was decided so far. Raises GPUStackError, and keeps it, when the database does not take it."""
        async with self._writing:
            lost, self._fleet.lost = self._fleet.lost, 0
            if lost:
                log.warning("%d decisions are lost: the database did not take them in time", lost)
            while await self._pages():
                async with self._store.transaction() as tx:
                    await tx.decisions.write(self._unwritten)
                self._unwritten = []
            self._decided.clear()
            self._full.clear()

    async def _pages(self) -> bool:
        """Make the next pages, if there are none; whoever is cancelled here has lost nothing."""
        if self._unwritten:
            return True
        self._in_hand = self._in_hand or self._fleet.take(_PAGE)
        if not self._in_hand:
            return False
        self._unwritten = await asyncio.to_thread(pages, self._in_hand, self._run_id, self._made)
        self._made += len(self._unwritten)
        self._in_hand = []
        return True


def pages(decided: Iterable[Taken], run: str, before: int) -> list[NewPage]:
    """Return the pages of ``decided``, after ``before`` of the run; what tells of the whole fleet begins one."""
    parts: list[list[Taken]] = []
    for each in decided:
        if each.whole or not parts:
            parts.append([])
        parts[-1].append(each)
    return [
        NewPage(
            run=run,
            number=number,
            whole=part[0].whole,
            body=pack(part),
            decided=[_row(each) for each in part],
        )
        for number, part in enumerate(parts, start=before)
    ]


def _row(taken: Taken) -> Decided:
    return Decided(
        model_id=taken.request.model_id,
        instance_id=taken.request.instance_id,
        worker_id=taken.answer.worker_id if isinstance(taken.answer, Placed) else None,
        at=taken.at,
    )


def pack(decided: Iterable[Taken]) -> str:
    """Return the text of a page."""
    lines = b"\n".join(map(line, decided))
    return base64.b64encode(zlib.compress(lines, _FAST)).decode()


def line(taken: Taken) -> bytes:
    """Return a decision as :meth:`Entry.read` reads it: as :meth:`Entry.write` writes it, but many times faster.

    Fields that have their default are written too, and what is a set has no order.
    """
    document: dict[str, object] = {
        "at": round(taken.at, 3),
        "request": taken.request,
        "verdict": outline(taken.answer, _as_it_is),
    }
    if taken.workers:
        document["workers"] = taken.workers
    if taken.gone:
        document["gone"] = taken.gone
    if taken.held:
        document["held"] = taken.held
    if taken.whole:
        document["whole"] = True
    return _ENCODER.encode(document)


def _as_it_is(placed: Placed) -> Placed:
    return placed


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    raise NotImplementedError(f"{type(value).__name__} cannot be recorded")


_ENCODER = msgspec.json.Encoder(enc_hook=_plain)


def unpack(body: str) -> list[str]:
    """Return the lines of a page, a decision each. Raises GPUStackError for what is no page."""
    try:
        return zlib.decompress(base64.b64decode(body)).decode().split("\n")
    except (ValueError, zlib.error) as error:
        raise GPUStackError(f"a page of decisions is damaged: {error}") from error


async def recorded(store: Store, spot: Spot) -> tuple[Replay, Entry] | None:
    """Return the fleet at the moment of a decision, and the decision; None when its pages are no longer kept."""
    bodies = await store.decisions.chain(spot.page_id)
    return await asyncio.to_thread(_rewound, bodies, spot.place) if bodies else None


def _rewound(bodies: list[str], place: int) -> tuple[Replay, Entry]:
    replay = Replay()
    for body in bodies[:-1]:
        for line in unpack(body):
            replay.step(Entry.read(line))
    lines = unpack(bodies[-1])
    for line in lines[:place]:
        replay.step(Entry.read(line))
    entry = Entry.read(lines[place])
    replay.step(entry)
    return replay, entry


async def exported(store: Store) -> AsyncGenerator[bytes, None]:
    """Yield all decisions that are kept as lines of JSON, run by run, each run from a whole fleet on."""
    for run in await store.decisions.runs():
        async for body in store.decisions.pages(run):
            lines = await asyncio.to_thread(unpack, body)
            yield ("\n".join(lines) + "\n").encode()
