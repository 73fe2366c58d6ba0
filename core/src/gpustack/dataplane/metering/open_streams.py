"""The streams that are being answered, in memory that outlives the process: what ``kill -9`` must not give away.

A stream has a slot while it is open: a record as it would be if nothing more came, written once, and in front of it the
counts so far, which every piece overwrites in place. Whoever adopts what a dead process left makes the last record of
each from that, as of a stream that was broken off. It has the id that the stream's own last record would have had: where
both exist, they count once.
"""

from __future__ import annotations

import logging
import mmap
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from struct import Struct

from gpustack.dataplane.metering.frames import Entry, frame, unframe
from gpustack.dataplane.metering.tail import content_of, shared_memory
from gpustack.dataplane.metering.usage import BYTES_PER_TOKEN, Tally, settle
from gpustack.plugin.routing import UsageRecord

log = logging.getLogger(__name__)

#: Bytes of one slot: counts, and a record with the longest names that there are.
SLOT = 1536
#: Slots of one file, and how many files there may be.
SLOTS, FILES = 512, 32

#: Pieces with text, and seconds from the request to the newest piece. In the machine's own order and alignment, so that
#: a number is stored at once: whoever is killed leaves the one before or this one.
_PIECE = Struct("@qd")
#: Seconds to the first piece (below 0: none came); tokens of prompt, cache and answer as the engine told them (-1: not).
_TOLD = Struct("@dqqq")
_RECORD = _PIECE.size + _TOLD.size
_write_piece = _PIECE.pack_into


class OpenStream:
    """One stream's slot. ``note`` is called for each piece and costs a fraction of a microsecond."""

    __slots__ = ("_at", "_began", "_first", "_free", "_heard", "_memory", "_tally", "id")

    def __init__(
        self, memory: mmap.mmap, at: int, free: Callable[[tuple[mmap.mmap, int]], None], name: str
    ) -> None:
        self._memory = memory
        self._at = at
        self._free = free
        #: The id of its record.
        self.id = name

    def begin(self, line: bytes, began: float, tally: Tally) -> None:
        """Write ``line`` down; ``began`` is when the request came, ``tally`` what the engine tells."""
        memory, at = self._memory, self._at
        self._began = began
        self._tally = tally
        self._heard, self._first = -1, -1.0
        _PIECE.pack_into(memory, at, 0, 0.0)
        _TOLD.pack_into(memory, at + _PIECE.size, -1.0, -1, -1, -1)
        memory[at + _RECORD : at + _RECORD + len(line)] = line

    def note(self, chunks: int, now: float) -> None:
        """A piece has come ``now``, by the clock of ``began``, and ``chunks`` with text so far."""
        _write_piece(self._memory, self._at, chunks, now - self._began)
        if self._tally.heard != self._heard:
            self._hear(now)

    def _hear(self, now: float) -> None:
        tally = self._tally
        if self._first < 0:
            self._first = now - self._began
        self._heard = tally.heard
        told = [-1 if each is None else each for each in (tally.prompt, tally.cached, tally.completion)]
        _TOLD.pack_into(self._memory, self._at + _PIECE.size, self._first, *told)

    def end(self) -> None:
        """The stream's own record is kept: forget this one. To be called once."""
        self._memory[self._at + _RECORD] = 0
        self._free((self._memory, self._at))


class OpenStreams:
    """The slots of one process, in files at ``paths``, of which there are as many as needed."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths
        self._maps: list[mmap.mmap] = []
        #: The lowest last: memory that nobody needed is never touched.
        self._free: list[tuple[mmap.mmap, int]] = []
        self._full = False

    @property
    def scarce(self) -> bool:
        """Whether it is time for :meth:`grow`."""
        return len(self._free) < SLOTS // 4 and not self._full

    def grow(self) -> None:
        """Make another file; in a thread. Without room for it, streams without a slot are as they are."""
        made = len(self._maps)
        if made == len(self._paths):
            self._full = True
            return
        try:
            memory = shared_memory(self._paths[made], SLOT * SLOTS)
        except OSError as error:
            self._full = True
            log.warning(
                "%s: no memory for more than %d open streams (%s): killing this process loses what the others took",
                self._paths[made].parent, made * SLOTS, error,
            )  # fmt: skip
            return
        self._maps.append(memory)
        self._free[:0] = [(memory, at) for at in range(SLOT * (SLOTS - 1), -1, -SLOT)]

    def begin(self, entry: Entry, began: float, tally: Tally) -> OpenStream | None:
        """Return the slot of a stream that begins with ``entry``; None where there is no memory for it."""
        line = frame(0, entry)
        if not self._free or len(line) > SLOT - _RECORD:
            return None
        stream = OpenStream(*self._free.pop(), self._free.append, entry.id)
        stream.begin(line, began, tally)
        return stream

    def left(self) -> Iterator[UsageRecord]:
        """Return the records of the streams that are open."""
        for memory in self._maps:
            yield from _records(bytes(memory))

    def remove(self) -> None:
        """Remove the files. Who still has a slot can go on with it, to no effect."""
        self._full = True
        for path in self._paths[: len(self._maps)]:
            path.unlink(missing_ok=True)
        # The memory goes with its last slot, not when cycles are collected.
        self._maps.clear()
        self._free.clear()


def read_open(path: Path) -> list[UsageRecord]:
    """Return the records of the streams that were open when the process ended, none when there is no such file."""
    return list(_records(content_of(path)))


def _records(content: bytes) -> Iterator[UsageRecord]:
    for at in range(0, len(content) - SLOT + 1, SLOT):
        start = at + _RECORD
        if not content[start]:
            continue
        end = content.find(b"\n", start, at + SLOT) + 1
        if (found := unframe(content[start:end])) is not None:
            yield _last_record(
                found[1], _PIECE.unpack_from(content, at), _TOLD.unpack_from(content, at + _PIECE.size)
            )


def _last_record(
    begun: UsageRecord, piece: tuple[int, float], told: tuple[float, int, int, int]
) -> UsageRecord:
    chunks, seconds = piece
    first, *counts = told
    tally = Tally()
    tally.prompt, tally.cached, tally.completion = (None if each < 0 else each for each in counts)
    # What takes no tokens was not begun with an estimate.
    usage = settle(tally, prompt_bytes=begun.prompt_tokens * BYTES_PER_TOKEN, chunks=chunks, final=False,
                   estimate=begun.estimated)  # fmt: skip
    streamed = chunks > 0 and first >= 0
    return replace(
        begun,
        at=begun.at + seconds,
        duration=seconds,
        prompt_tokens=usage.prompt,
        cached_tokens=usage.cached,
        completion_tokens=usage.completion,
        estimated=usage.estimated,
        time_to_first_token=first if streamed else None,
        between_tokens=(seconds - first) / (chunks - 1) if streamed and chunks > 1 else None,
    )
