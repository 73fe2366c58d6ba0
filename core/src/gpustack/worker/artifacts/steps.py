"""What pip and uv say while they install, in a few words for people."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

#: Seconds between two looks at what they wrote: it goes to a file, since they may outlive us.
_EVERY = 2.0
_MOST = 1 << 20
_SAID = (
    (re.compile(r"^\s*Downloading (\S+)(?: (\([^)]*\)))?"), "downloading"),
    (re.compile(r"^\s*Building wheels? for (?:collected packages: )?(\S+)"), "building"),
    (re.compile(r"^\s*Building (\S+)"), "building"),
    (re.compile(r"^\s*Collecting (\S+)"), "looking for"),
    (re.compile(r"^DEBUG Selecting: (\S+)"), "looking for"),
    (re.compile(r"^\s*Installing collected packages: (.*)"), "unpacking"),
    (re.compile(r"^Prepared (\d+ packages?)"), "unpacking"),
)


def step_of(line: str) -> str:
    """Return what a line of pip's or uv's output says is being done; empty when it says nothing of that."""
    for pattern, verb in _SAID:
        if (match := pattern.match(line)) is not None:
            what = match[1].rsplit("/", 1)[-1] if verb == "downloading" else match[1]
            size = f" {match[2]}" if match.re.groups > 1 and match[2] else ""
            if verb == "unpacking" and "," in what:
                what = f"{what.count(',') + 1} packages"
            return f"{verb} {what[:100]}{size}"
    return ""


@asynccontextmanager
async def told(output: Path, title: str, say: Callable[[str], None]) -> AsyncIterator[None]:
    """While the block runs, say what is written to ``output`` as steps of ``title``, the newest every other second at most."""
    task = asyncio.create_task(_follow(output, title, say), name=f"steps of {title}")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _follow(output: Path, title: str, say: Callable[[str], None]) -> None:
    place, last = await asyncio.to_thread(_size, output), ""
    while True:
        await asyncio.sleep(_EVERY)
        place, step = await asyncio.to_thread(_newest, output, place)
        if step and step != last:
            last = step
            say(f"installing {title}: {step}")


def _size(output: Path) -> int:
    return output.stat().st_size if output.exists() else 0


def _newest(output: Path, place: int) -> tuple[int, str]:
    """Return where the file was read to, and the last step that was said after ``place``."""
    try:
        with output.open("rb") as file:
            file.seek(place)
            written = file.read(_MOST)
    except OSError:
        return place, ""
    lines = written.rpartition(b"\n")[0]
    steps = [step for line in lines.decode("utf-8", "replace").splitlines() if (step := step_of(line))]
    return place + len(lines), steps[-1] if steps else ""
