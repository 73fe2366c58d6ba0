"""One file from a web server onto the disk: goes on where an earlier attempt ended, and never takes half of one for all.

Proxies and authorities are those that the usual variables name, as for every download of ours.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit, urlunsplit

import httpx

from gpustack.kit.backoff import Backoff
from gpustack.kit.text import human_bytes
from gpustack.kit.trust import authorities
from gpustack.worker.artifacts.errors import InstallError

Say = Callable[[str], None]

#: Bytes that are read at a time of what is here already.
_PIECE = 1 << 20
#: Failures in a row without a byte in between after which somebody else is to decide how to go on.
_MOST_FAILURES = 3
#: Seconds between two lines that tell how far it is.
_TELL = 2.0
#: Bytes kept free on the disk.
_SPARE = 64 << 20
#: Lists of digests are not longer.
_LONGEST_LIST = 4 << 20
_CONNECT, _STALL = 15.0, 60.0
_NEVER = (400, 401, 403, 404, 405, 407, 410, 451)


class _Broken(Exception):
    """The connection failed or broke off; another attempt may go on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a file is fetched from, and what it is to be."""

    url: str
    #: What people call it.
    name: str
    #: SHA-256 in hexadecimal; empty where nobody knows.
    sha256: str = ""
    #: Larger files are refused.
    limit: int


def elsewhere(url: str, base: str) -> str:
    """Return ``url`` below another server: its path stays, what is before that is ``base``. Without a base it stays."""
    if not base:
        return url
    parts, other = urlsplit(url), urlsplit(base)
    path = other.path.rstrip("/") + parts.path
    return urlunsplit((other.scheme, other.netloc, path, parts.query, ""))


def shown(url: str) -> str:
    """Return an address for people: without names and passwords."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))


class Fetcher:
    """Fetches files. ``first`` and ``stall`` are seconds: of the first pause after a failure, and without a byte."""

    def __init__(self, *, first: float = 1.0, stall: float = _STALL) -> None:
        self._first = first
        self._stall = stall

    async def digest_of(self, url: str, name: str) -> str:
        """Return the SHA-256 that the list at ``url`` (lines of ``DIGEST  NAME``) has of the file ``name``; "" for none.

        A list that is not there is none. Raises InstallError when nobody can be asked.
        """
        async with _http(self._stall) as http:

            async def attempt() -> str:
                async with _asked(http, url, {}) as response:
                    if response.status_code in (404, 410):
                        return ""
                    _check(response, url, f"the digests of {name}")
                    text = b""
                    async for piece in _pieces(response):
                        text += piece
                        if len(text) > _LONGEST_LIST:
                            return ""
                    return _listed(text.decode("utf-8", "replace"), name)

            return str(await self._patiently(attempt, lambda: 0, url))

    async def fetch(self, source: Source, path: Path, say: Say) -> str:
        """Have the whole of ``source`` at ``path``, and return its SHA-256.

        What is at ``path.part`` from an earlier attempt is continued when the server says that it is the same file
        still. ``say`` gets a line now and then. When this is cancelled, what was fetched stays for the next attempt.
        Raises InstallError: again unless the file does not exist, or has another digest each time.
        """
        part = path.with_name(f"{path.name}.part")
        async with _http(self._stall) as http:
            for last in (False, True):
                progress = _Progress(source, say)
                attempt = partial(_attempt, http, source, part, progress)
                digest = await self._patiently(attempt, progress.here, source.url)
                if source.sha256 in ("", digest):
                    part.replace(path)
                    _tag(part).unlink(missing_ok=True)
                    return str(digest)
                _forget(part)
                if last:
                    raise InstallError(
                        f"{source.name} from {shown(source.url)} has the SHA-256 {digest[:12]}… each time and is to have "
                        f"{source.sha256[:12]}…; it was changed, or --tools-download-base-url has something else",
                        again=False,
                    )
                say(f"{source.name} is not what it is to be; fetching it once more")
        raise AssertionError("not reached")

    async def _patiently(self, attempt: Callable[[], Any], progress: Callable[[], int], url: str) -> Any:
        """Return what ``attempt()`` gives, made again while attempts bring bytes, and a few times without any."""
        wait, failures, before = Backoff(first=self._first, limit=10.0), 0, progress()
        while True:
            try:
                return await attempt()
            except _Broken as error:
                if progress() > before:
                    failures, before = 0, progress()
                    wait.reset()
                failures += 1
                if failures >= _MOST_FAILURES:
                    raise InstallError(
                        f"{shown(url)} cannot be fetched: {error}; check the network, the proxy variables, or "
                        "--tools-download-base-url"
                    ) from error
            await asyncio.sleep(wait.next())


class _Progress:
    """How much is here, told now and then."""

    def __init__(self, source: Source, say: Say) -> None:
        self._source = source
        self._say = say
        self._told = time.monotonic()
        self._done = 0

    def here(self) -> int:
        return self._done

    def at(self, done: int, total: int) -> None:
        self._done = done
        now = time.monotonic()
        if now - self._told < _TELL:
            return
        self._told = now
        of = f" of {human_bytes(total)} ({done * 100 // total} %)" if total else ""
        self._say(f"downloading {self._source.name}: {human_bytes(done)}{of}")


# One attempt ------------------------------------------------------------------------------------------------


async def _attempt(http: httpx.AsyncClient, source: Source, part: Path, progress: _Progress) -> str:
    """Fetch what ``part`` lacks, and return the digest of all of it once it is on disk."""
    have, validator = await asyncio.to_thread(_found, part)
    headers = {"Range": f"bytes={have}-", "If-Range": validator} if have and validator else {}
    async with _asked(http, source.url, headers) as response:
        if response.status_code == 416:
            # Longer than the file is now, or just as long: nobody can tell any more that it is the same.
            _forget(part)
            raise _Broken("the file there is another one now")
        _check(response, source.url, source.name)
        if response.status_code != 206 or not _goes_on(response, have):
            have = 0
        length = _length(response)
        total = have + length if length is not None else 0
        if total > source.limit:
            raise _too_large(source)
        _check_room(part.parent, source, length or 0)
        with await asyncio.to_thread(_opened, part, have, _validator(response)) as file:
            digest = await asyncio.to_thread(_digest, file, have)
            async for piece in _pieces(response):
                have += len(piece)
                if have > source.limit:
                    raise _too_large(source)
                await asyncio.to_thread(_take, file, digest, piece)
                progress.at(have, total)
            if total and have != total:
                raise _Broken("the connection broke off")
            await asyncio.to_thread(_settle, file)
    return str(digest.hexdigest())


@asynccontextmanager
async def _http(stall: float) -> AsyncIterator[httpx.AsyncClient]:
    timeout = httpx.Timeout(stall, connect=min(_CONNECT, stall))
    verify = await asyncio.to_thread(authorities)
    async with httpx.AsyncClient(
        timeout=timeout, verify=verify, follow_redirects=True, headers={"Accept-Encoding": "identity"}
    ) as http:
        yield http


@asynccontextmanager
async def _asked(http: httpx.AsyncClient, url: str, headers: dict[str, str]) -> AsyncIterator[httpx.Response]:
    try:
        async with http.stream("GET", url, headers=headers) as response:
            yield response
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.TooManyRedirects) as error:
        raise InstallError(f"{shown(url)} cannot be fetched: {error}", again=False) from error
    except httpx.HTTPError as error:
        raise _Broken(_why(error)) from error


async def _pieces(response: httpx.Response) -> AsyncIterator[bytes]:
    # Raw: what the server has compressed on its own account would have other lengths and digests. As they come: what is
    # gathered first is lost when the connection breaks.
    async for piece in response.aiter_raw():
        yield piece


def _why(error: httpx.HTTPError) -> str:
    if isinstance(error, httpx.ConnectTimeout):
        return "it does not answer"
    if isinstance(error, httpx.TimeoutException):
        return "it has stopped sending"
    if isinstance(error, httpx.RemoteProtocolError | httpx.ReadError):
        return "the connection broke off"
    return str(error).strip() or type(error).__name__


def _check(response: httpx.Response, url: str, what: str) -> None:
    status = response.status_code
    if status in (404, 410):
        raise InstallError(
            f"there is no {what} at {shown(url)}; choose another version, or check --tools-download-base-url",
            again=False,
        )
    if status in _NEVER:
        raise InstallError(f"{shown(url)} refuses {what}: status {status}", again=False)
    if status not in (200, 206):
        raise _Broken(f"it answers with status {status}")


def _goes_on(response: httpx.Response, have: int) -> bool:
    return str(response.headers.get("Content-Range", "")).startswith(f"bytes {have}-")


def _length(response: httpx.Response) -> int | None:
    text = response.headers.get("Content-Length", "")
    return int(text) if text.isdecimal() and "Content-Encoding" not in response.headers else None


def _validator(response: httpx.Response) -> str:
    """Return what tells this file from a later one of that name; empty when the server says nothing strong."""
    tag = str(response.headers.get("ETag", ""))
    return tag if tag and not tag.startswith("W/") else str(response.headers.get("Last-Modified", ""))


def _listed(text: str, name: str) -> str:
    for line in text.splitlines():
        words = line.split()
        if len(words) == 2 and words[1].lstrip("*").removeprefix("./") == name:
            digest = words[0].lower()
            return digest if len(digest) == 64 and set(digest) <= set("0123456789abcdef") else ""
    return ""


# The disk ----------------------------------------------------------------------------------------------------


def _tag(part: Path) -> Path:
    return part.with_name(f"{part.name}.tag")


def _found(part: Path) -> tuple[int, str]:
    """Return how much is there from an earlier attempt, and of which file; 0 when it cannot be continued."""
    try:
        size = part.stat().st_size
        validator = json.loads(_tag(part).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0, ""
    return (size, validator) if isinstance(validator, str) else (0, "")


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _tag(part).unlink(missing_ok=True)


def _opened(part: Path, have: int, validator: str) -> IO[bytes]:
    if not have:
        _forget(part)
        _tag(part).write_text(json.dumps(validator), encoding="utf-8")
    file = part.open("a+b")
    file.truncate(have)
    return file


def _digest(file: IO[bytes], have: int) -> Any:
    """Return the digest of what is there already; the file is then at its end."""
    digest = hashlib.sha256()
    file.seek(0)
    while have and (piece := file.read(_PIECE)):
        digest.update(piece)
    file.seek(0, 2)
    return digest


def _take(file: IO[bytes], digest: Any, piece: bytes) -> None:
    file.write(piece)
    # What this process still held would be lost with it.
    file.flush()
    digest.update(piece)


def _settle(file: IO[bytes]) -> None:
    os.fsync(file.fileno())


def _check_room(folder: Path, source: Source, more: int) -> None:
    free = shutil.disk_usage(folder).free
    if more + _SPARE > free:
        raise InstallError(
            f"the disk of {folder} is full: {source.name} takes {human_bytes(more)} and {human_bytes(free)} are free; "
            "make room, or choose another --bin-dir"
        )


def _too_large(source: Source) -> InstallError:
    return InstallError(
        f"{source.name} at {shown(source.url)} is larger than {human_bytes(source.limit)}; that is no engine",
        again=False,
    )
