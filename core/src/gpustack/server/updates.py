"""Whether there is a newer GPUStack: one small document is asked for once a day, and nothing waits for it."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import platform
import random
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

from packaging.version import InvalidVersion, Version

from gpustack.kit.errors import system_line
from gpustack.kit.paths import write_atomic
from gpustack.kit.threads import call_aside
from gpustack.kit.trust import authorities

log = logging.getLogger(__name__)

_LONGEST = 64 << 10
_LONGEST_VERSION = 64
_LONGEST_URL = 2048
_MOST_REDIRECTS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateStatus:
    """What is known of newer versions. ``checked_at`` is when that was last heard, None for never."""

    current_version: str
    #: None until something was heard.
    latest_version: str | None = None
    update_available: bool = False
    #: Where the latest version is described; empty when that is not known.
    url: str = ""
    checked_at: datetime | None = None
    #: Whether anybody is asked.
    enabled: bool


class UpdateCheck:
    """Asks for the version document at ``url`` now and then; ``url`` "" is off. ``version`` is the one that runs.

    The document is ``{"latest_version": "1.2.3", "url": "https://…"}``, its ``url`` optional. ``interval`` and
    ``timeout`` are seconds. The file ``kept`` holds the last answer for the next start and for `gpustack status`.
    """

    #: Seconds until the first check, so that it slows no start.
    FIRST = 5.0
    #: Seconds from a failure to the next check.
    AGAIN = 3600.0

    def __init__(
        self,
        url: str,
        version: str,
        *,
        interval: float = 86400.0,
        timeout: float = 10.0,
        kept: Path | None = None,
    ) -> None:
        self._url = url
        self._version = version
        self._interval = interval
        self._timeout = timeout
        self._kept = kept
        self._changed = asyncio.Event()
        self._latest = self._nothing()

    @property
    def latest(self) -> UpdateStatus:
        """What was last heard; a check that fails changes nothing."""
        return self._latest

    def use(self, url: str) -> None:
        """Ask at ``url`` from now on, and soon; "" asks nobody. What another one said is forgotten."""
        if url == self._url:
            return
        self._url = url
        self._latest = self._nothing()
        self._changed.set()

    async def run(self) -> NoReturn:
        """Check until cancelled. What network, document and disk do wrong is at most a line in the log."""
        wait = await self._recall()
        while True:
            if await self._changes_within(wait):
                await self._forget()
                wait = self.FIRST if self._url else None
            else:
                # Servers that were started together are not to ask together for ever.
                wait = await self._check() * random.uniform(0.9, 1.1)

    async def _changes_within(self, seconds: float | None) -> bool:
        """Wait for another url; False when none came. None waits for ever."""
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            return False
        self._changed.clear()
        return True

    async def _check(self) -> float:
        """Ask once; return the seconds until the next time."""
        url = self._url
        fetch = functools.partial(_fetch, url, self._agent(), self._timeout)
        try:
            # Not in the loop's own pool: looking up a name may hang, and the end of the server waits for that pool.
            version, page = _read(await call_aside("update check", fetch, timeout=self._timeout))
        except Exception as error:  # noqa: BLE001 - whatever network and document do, the server goes on
            log.debug("the update check failed: %r", error)
            return self.AGAIN
        if url == self._url:
            await self._learn(version, page)
        return self._interval

    async def _learn(self, version: Version, page: str) -> None:
        before, self._latest = self._latest, self._judged(version, page, datetime.now(UTC))
        if self._latest.update_available and self._latest.latest_version != before.latest_version:
            where = f": {page}" if page else ""
            log.info("GPUStack %s is available (this is %s)%s", version, self._version, where)
        await self._keep()

    def _agent(self) -> str:
        return f"gpustack/{self._version} ({platform.system()}; {platform.machine()})"

    def _nothing(self) -> UpdateStatus:
        return UpdateStatus(current_version=self._version, enabled=bool(self._url))

    def _judged(self, version: Version, page: str, when: datetime) -> UpdateStatus:
        return UpdateStatus(
            current_version=self._version,
            latest_version=str(version),
            update_available=_is_update(version, self._version),
            url=page,
            checked_at=when,
            enabled=True,
        )

    # The file ---------------------------------------------------------------------------------------------

    async def _recall(self) -> float | None:
        """Take up what an earlier run heard; return the seconds until the first check, None for never."""
        self._changed.clear()
        url = self._url
        if not url:
            await self._forget()
            return None
        found = None if self._kept is None else await asyncio.to_thread(_read_kept, self._kept, url)
        if found is None or url != self._url:
            await self._forget()
            return self.FIRST
        self._latest = self._judged(*found)
        await self._keep()
        age = (datetime.now(UTC) - found[2]).total_seconds()
        # One of the future tells of a clock that was wrong.
        return max(self.FIRST, self._interval - age) if age >= 0 else self.FIRST

    async def _keep(self) -> None:
        if self._kept is None:
            return
        document = json.dumps(asdict(self._latest) | {"source": self._url}, default=datetime.isoformat)
        try:
            await asyncio.to_thread(write_atomic, self._kept, document, mode=0o600)
        except OSError as error:
            log.warning("the result of the update check is not kept: %s", system_line(error))

    async def _forget(self) -> None:
        if self._kept is None:
            return
        try:
            await asyncio.to_thread(self._kept.unlink, missing_ok=True)
        except OSError as error:
            log.warning("the result of an earlier update check stays: %s", system_line(error))


def _is_update(latest: Version, current: str) -> bool:
    """Tell whether who runs ``current`` is to be offered ``latest``: a pre-release only who runs one.

    A ``current`` that is no version of PEP 440 is a build of somebody's own, who knows what comes after it.
    """
    try:
        ours = Version(current)
    except InvalidVersion:
        return False
    return latest > ours and (ours.is_prerelease or not latest.is_prerelease)


def _fetch(url: str, agent: str, timeout: float) -> bytes:
    """Return what is at ``url``. Blocks; raises ValueError for what cannot be it, and whatever the network does."""
    # A server that checks nothing does without these.
    import httpx

    from gpustack.client.transport import is_loopback

    deadline = time.monotonic() + timeout
    content = b""
    with (
        httpx.Client(
            # Compressed, a few bytes could become many in memory.
            headers={"User-Agent": agent, "Accept": "application/json", "Accept-Encoding": "identity"},
            follow_redirects=True,
            max_redirects=_MOST_REDIRECTS,
            timeout=timeout,
            trust_env=not is_loopback(httpx.URL(url).host),
            verify=authorities(),
        ) as http,
        http.stream("GET", url) as response,
    ):
        if response.status_code != httpx.codes.OK:
            raise ValueError(f"status {response.status_code}")
        for piece in response.iter_raw():
            content += piece
            if len(content) > _LONGEST:
                raise ValueError("more than 64 KiB")
            if time.monotonic() > deadline:
                raise TimeoutError
    return content


def _read(content: bytes) -> tuple[Version, str]:
    """Return the version that a document names, and where that is described. Raises ValueError."""
    try:
        document = json.loads(content)
    except RecursionError:
        raise ValueError("no version document") from None
    if not isinstance(document, dict):
        raise ValueError("no version document")
    version, page = document.get("latest_version"), document.get("url", "")
    if not isinstance(version, str) or len(version) > _LONGEST_VERSION:
        raise ValueError("no version in it")
    if not isinstance(page, str) or (page and not _is_page(page)):
        raise ValueError("its url is no address of a page")
    return Version(version), page


def _is_page(url: str) -> bool:
    if len(url) > _LONGEST_URL or not url.isascii() or not url.isprintable() or " " in url:
        return False
    parts = urlsplit(url)
    return parts.scheme in ("http", "https") and bool(parts.hostname)


def _read_kept(path: Path, source: str) -> tuple[Version, str, datetime] | None:
    """Return what :func:`_read` does and when it was heard; None when ``path`` holds nothing from ``source``."""
    try:
        content = path.read_bytes()
        version, page = _read(content)
        document = json.loads(content)
        if document["source"] != source:
            return None
        return version, page, datetime.fromisoformat(document["checked_at"]).astimezone(UTC)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, OverflowError) as error:
        log.debug("what an earlier update check kept is of no use: %r", error)
        return None
