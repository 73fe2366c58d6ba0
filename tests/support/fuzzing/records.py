"""The journal's lines: whatever a torn or foreign file holds, records come out of it only as they were put in."""

from __future__ import annotations

from collections.abc import Iterable
from zlib import crc32

from gpustack.dataplane.metering import frames
from gpustack.plugin.routing import UsageRecord

WORDS = (
    *(b"\n", b"\r\n", b"\0", b" ", b'{"id":"a","at":1.5,"model":"m"}', b'"completion_tokens":', b'"id":', b"18446744073709551616"),
    *(b"00000000 ", b"1 ", b"-1 ", b"1_0 ", b"0x1 ", b"\r", b"\xe2\x80\xa8", b"1e400", b"null", b"NaN"),
)  # fmt: skip


def _record(number: int, **more: object) -> UsageRecord:
    return UsageRecord(id=f"w-{number:x}", at=1.5, model="m", **more)  # type: ignore[arg-type]


def seeds() -> Iterable[bytes]:
    """Return files of a journal, whole and torn."""
    lines = [frames.frame(number, _record(number, completion_tokens=number)) for number in range(1, 5)]
    yield b"".join(lines)
    yield b"".join(lines)[:-20]
    yield lines[0] + lines[2] + lines[3][:30] + lines[1]
    yield b"".join(lines) + bytes(200)
    yield frames.frame(7, _record(7, status=499, route='"\n\u2028é', time_to_first_token=0.25))
    yield b'1 {"id":"a","at":1,"model":"m"}\n-1 {}\n1_0 {"id":"a","at":1,"model":"m"}\n'


def run(data: bytes) -> None:
    """Read ``data`` as a file, its lines with a checksum that is right, and true frames that it has been written over."""
    _file(data)
    signed = b"".join(b"%08x %b\n" % (crc32(line + b"\n"), line) for line in data.split(b"\n")[:20])
    _file(signed)
    true = [frames.frame(number, _record(number)) for number in (1, 2, 3)]
    whole = b"".join(true)
    at = crc32(data) % len(whole)
    damaged = whole[:at] + data + whole[at + len(data) :]
    found, _ = frames.read(damaged)
    known = [(number, _record(number)) for number in (1, 2, 3)]
    written = {each[0] for each in frames.read(data)[0]}
    assert all(each in known or each[0] in written for each in found), (
        "a record comes out that was not put in"
    )
    _file(damaged)


def _file(content: bytes) -> None:
    found, broken = frames.read(content)
    run = frames.read_run(content)
    assert found[: len(run)] == run
    assert [number for number, _ in run] == list(range(run[0][0], run[0][0] + len(run))) if run else True
    assert broken <= content.count(b"\n") + 1
    for number, record in found:
        assert number >= 0
        line = frames.frame(number, record)
        assert frames.unframe(line) == (number, record), "a record does not survive being written again"
    again = b"".join(frames.frame(*each) for each in found)
    assert frames.read(again) == (found, 0)
    # One by one, as the files are read.
    one_by_one = [
        frames.unframe(line + b"\n") for line in content.split(b"\n")[:-1] if len(line) < frames.LONGEST
    ]
    assert [each for each in one_by_one if each is not None] == found, "two ways to read a file differ"
