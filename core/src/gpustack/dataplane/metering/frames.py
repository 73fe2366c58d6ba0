"""How records lie in a file: one line each, with a number and a checksum, so that a torn line is known for one.

A line is ``<crc32 of the rest, 8 hex digits> <number> <record as JSON>\\n``. The number grows by one with each record of
one writer.
"""

from __future__ import annotations

import re
from zlib import crc32

import msgspec

from gpustack.plugin.routing import UsageRecord

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(UsageRecord).decode

#: A longer line is none of ours.
LONGEST = 64 << 10

#: A record with its number.
Numbered = tuple[int, UsageRecord]


class Entry(msgspec.Struct, omit_defaults=True, gc=False):
    """The same as a :class:`~gpustack.plugin.routing.UsageRecord`, field by field, made at a twentieth of the cost.

    Once a request, that counts. It is written as such a record is, and read as one.
    """

    id: str
    at: float
    model: str
    instance_id: int | None = None
    user_id: int | None = None
    key_id: int | None = None
    status: int = 200
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    time_to_first_token: float | None = None
    duration: float = 0.0
    operation: str = ""
    route: str = ""
    queued: float = 0.0
    between_tokens: float | None = None
    estimated: bool = False
    request_id: str = ""

    @property
    def record(self) -> UsageRecord:
        """The same as a record."""
        return UsageRecord(**msgspec.structs.asdict(self))


def frame(number: int, record: UsageRecord | Entry) -> bytes:
    """Return the line of ``record``."""
    rest = b"%d %b\n" % (number, _encode(record))
    return b"%08x %b" % (crc32(rest), rest)


def unframe(line: bytes) -> Numbered | None:
    """Return what a line, with its end, says; None when it is torn, or was written by something else."""
    if line[-1:] != b"\n" or line[8:9] != b" ":
        return None
    try:
        if crc32(line[9:]) != int(line[:8], 16):
            return None
        number, _, record = line[9:].partition(b" ")
        return (int(number), _decode(record)) if number.isdigit() else None
    except (ValueError, msgspec.DecodeError, RecursionError):
        return None


def read(content: bytes) -> tuple[list[Numbered], int]:
    """Return the records of a file's content in order, and how many lines were not whole. Any bytes are fine."""
    records: list[Numbered] = []
    broken = 0
    # Not splitlines, which takes other ends of lines for one, too.
    for line in re.findall(rb"[^\n]*\n|[^\n]+\Z", content):
        if len(line) <= LONGEST and (found := unframe(line)) is not None:
            records.append(found)
        elif line.strip(b"\0\r\n"):
            broken += 1
    return records, broken


def read_run(content: bytes) -> list[Numbered]:
    """Return the records at the beginning of ``content``, up to the first line that does not follow the one before."""
    records: list[Numbered] = []
    start = 0
    while (end := content.find(b"\n", start, start + LONGEST) + 1) > 0:
        found = unframe(content[start:end])
        if found is None or (records and found[0] != records[-1][0] + 1):
            break
        records.append(found)
        start = end
    return records
