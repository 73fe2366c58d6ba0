"""Images of engines: fetched by the container engine of this machine when they are not there, with progress."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gpustack.kit.images import with_registry
from gpustack.kit.text import human_bytes
from gpustack.kit.threads import in_daemon
from gpustack.worker.artifacts.errors import InstallError
from gpustack.worker.runners.container_api import connected, said
from gpustack.worker.runners.daemon import Daemon, NoContainerEngine, find
from gpustack.worker.runners.daemon_words import pull_trouble

if TYPE_CHECKING:
    from docker import APIClient

log = logging.getLogger(__name__)

#: Seconds between two lines of progress.
_TELL = 1.0
#: Seconds in which a container engine that was here, and is being started anew, is waited for.
_RESTARTING = 10.0
_LOOK = 0.5


class Images:
    """The images of a worker's engines. ``registry`` is for those that are named without one."""

    def __init__(self, registry: str) -> None:
        self._registry = registry
        self._seen = False
        #: One pull at a time of each image: the others wait, and find it there.
        self._busy: dict[str, asyncio.Lock] = {}

    async def ensure(self, image: str, say: Callable[[str], None]) -> str:
        """Return the name of ``image`` with its registry, once it is on this machine; ``say`` gets a line at times.

        An image that is there is not asked for again, whatever its registry has by now. When this is cancelled, so is
        the pull. Raises InstallError with one line when it cannot be had, and NoContainerEngine.
        """
        name = with_registry(image, self._registry)
        daemon = await self._daemon()
        async with self._busy.setdefault(name, asyncio.Lock()):
            await _to_its_end(_Pull(daemon, name, _from_any_thread(say)))
        return name

    async def _daemon(self) -> Daemon:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (_RESTARTING if self._seen else 0.0)
        while True:
            try:
                daemon = await asyncio.to_thread(find)
            except NoContainerEngine:
                if loop.time() >= deadline:
                    raise
                await asyncio.sleep(_LOOK)
            else:
                self._seen = True
                return daemon


def _from_any_thread(say: Callable[[str], None]) -> Callable[[str], None]:
    loop = asyncio.get_running_loop()

    def tell(line: str) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(say, line)

    return tell


async def _to_its_end(pull: _Pull) -> None:
    """Do the pull in a thread of its own; it is cut off when we are cancelled."""
    try:
        await asyncio.wrap_future(in_daemon(pull.run, name=f"pulls {pull.image}"))
    except asyncio.CancelledError:
        pull.stop()
        raise


class _Pull:
    def __init__(self, daemon: Daemon, image: str, say: Callable[[str], None]) -> None:
        self.image = image
        self._daemon = daemon
        self._say = say
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Have it give up at the next sign of life of the container engine, which then gives up too."""
        self._stopped.set()

    def run(self) -> None:
        import docker

        try:
            with connected(self._daemon.url) as client:
                try:
                    if _is_there(client, self.image):
                        return
                    self._say(f"pulling the image {self.image}")
                    self._fetch(client)
                    if not self._stopped.is_set() and not _is_there(client, self.image):
                        raise InstallError(
                            f"the image {self.image} was fetched and is not there; is it being removed?"
                        )
                except docker.errors.APIError as error:
                    raise self._told(said(error)) from error
        except docker.errors.InvalidRepository as error:
            raise self._told("invalid reference format") from error

    def _fetch(self, client: APIClient) -> None:
        from docker.utils import parse_repository_tag

        began = time.monotonic()
        repository, tag = parse_repository_tag(self.image)
        progress = Progress(self.image)
        told = 0.0
        for event in client.pull(repository, tag=tag or "latest", stream=True, decode=True):
            if self._stopped.is_set():
                return
            if "error" in event:
                raise self._told(str(event["error"]))
            progress.take(event)
            if (now := time.monotonic()) - told >= _TELL and progress.text:
                told = now
                self._say(progress.text)
        log.info("image %s: fetched in %.1f s", self.image, time.monotonic() - began)

    def _told(self, text: str) -> InstallError:
        told = pull_trouble(text, self.image, engine=self._daemon.name, root=self._daemon.root)
        return InstallError(told.line, again=told.again)


def _is_there(client: APIClient, image: str) -> bool:
    import docker

    try:
        client.inspect_image(image)  # type: ignore[no-untyped-call]  # docker has no types for it
    except docker.errors.NotFound:
        return False
    return True


@dataclass(slots=True)
class Progress:
    """How far a pull is, from the events of the container engine: one layer at a time says how far it is."""

    image: str
    _layers: dict[str, tuple[int, int]] = field(default_factory=dict)
    _unpacked: set[str] = field(default_factory=set)

    def take(self, event: dict[str, Any]) -> None:
        """Take in one event."""
        layer, status = str(event.get("id", "")), str(event.get("status", ""))
        detail = event.get("progressDetail") or {}
        done, size = (detail.get(key) for key in ("current", "total"))
        if not layer:
            return
        if status == "Downloading" and isinstance(done, int) and isinstance(size, int):
            self._layers[layer] = min(done, size), size
        elif status in ("Download complete", "Verifying Checksum", "Extracting", "Pull complete"):
            _, whole = self._layers.get(layer, (0, 0))
            self._layers[layer] = whole, whole
            if status == "Pull complete":
                self._unpacked.add(layer)

    @property
    def text(self) -> str:
        """Return a line; "" while nothing is known. The size is of the layers that have begun."""
        done = sum(each for each, _ in self._layers.values())
        size = sum(each for _, each in self._layers.values())
        if not size:
            return ""
        if done >= size:
            count = f"{len(self._unpacked)} of {len(self._layers)} layers"
            return f"pulling the image {self.image}: unpacking ({count})"
        return f"pulling the image {self.image}: {human_bytes(done)} of {human_bytes(size)} ({100 * done // size} %)"
