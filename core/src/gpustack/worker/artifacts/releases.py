"""Installs engines that come as an archive with an executable in it, each build of each version once."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import re
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote, urlsplit

from gpustack.kit.errors import Conflict, system_line
from gpustack.kit.locks import FileLock
from gpustack.kit.paths import make_dir
from gpustack.kit.tasks import to_the_end
from gpustack.plugin import ReleaseBinary
from gpustack.worker.artifacts.child import run_child
from gpustack.worker.artifacts.errors import InstallError
from gpustack.worker.artifacts.fetching import Fetcher, Source, elsewhere, shown
from gpustack.worker.artifacts.folders import disk_use, refuse_used
from gpustack.worker.artifacts.proof import names
from gpustack.worker.artifacts.receipts import Receipt, read_receipt, releases, remove_receipt, write_receipt
from gpustack.worker.artifacts.unpacking import BadArchive, Bounds, unpack
from gpustack.worker.environment import DEVICES, clean_environment

Progress = Callable[[str], None]

#: Larger archives are refused.
_LARGEST = 16 << 30
_ENDS = re.compile(r"\.(zip|tar|tgz|tbz2?|txz|tar\.(gz|bz2|xz))\Z", re.IGNORECASE)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,199}")
_FULL = (errno.ENOSPC, errno.EDQUOT)


class ArchiveInstaller:
    """Makes engines of archives ready to run.

    What an archive holds lies in ``<bin_dir>/releases/BUILD_VERSION``, where BUILD is the name of the archive: builds
    for other devices are other installations, so that machines may share the folder. Beside the folder
    ``<bin_dir>/BUILD_VERSION`` is a link to the executable, with its receipt. What the executable says when it is
    checked goes to ``<log_dir>/install_BUILD_VERSION.log``. Archives come from where their URLs say, or with
    ``base_url`` from the same paths below that.
    """

    def __init__(
        self,
        *,
        bin_dir: Path,
        log_dir: Path,
        base_url: str = "",
        environ: Mapping[str, str] | None = None,
        verify_timeout: float = 120.0,
        fetcher: Fetcher | None = None,
        bounds: Bounds | None = None,
        log: logging.Logger | None = None,
        on_installed: Callable[[], None] = lambda: None,
    ) -> None:
        self._bin_dir = bin_dir
        self._log_dir = log_dir
        self._base_url = base_url
        self._environ = environ
        self._verify_timeout = verify_timeout
        self._fetcher = fetcher or Fetcher()
        self._bounds = bounds
        self._log = log or logging.getLogger(__name__)
        self._on_installed = on_installed
        self._busy: dict[str, asyncio.Lock] = {}

    def link(self, artifact: ReleaseBinary) -> Path:
        """Return the link that leads to the executable, or would."""
        return self._bin_dir / _name(artifact)

    async def ensure(
        self, backend: str, artifact: ReleaseBinary, on_progress: Progress | None = None
    ) -> Path:
        """Return the path of the executable, in the folder of the archive, after installing it if need be.

        What was proven before and has not changed since costs a few file system calls. Calls for the same build wait
        for one another, also across processes. When this is cancelled, what was fetched is kept for the next call.
        ``on_progress`` gets a line now and then. Raises InstallError with one line.
        """
        link = self.link(artifact)
        if not _is_proven(link):
            async with self._busy.setdefault(link.name, asyncio.Lock()):
                if not _is_proven(link):
                    await self._install(backend, artifact, link, on_progress or (lambda _line: None))
        return link.resolve()

    async def remove(self, artifact: ReleaseBinary, on_progress: Progress | None = None) -> bool:
        """Take an engine away again, also what is left of one; False when there is nothing.

        An install that is going on is awaited. Raises Conflict while something runs from it, and when it was made
        meanwhile; InstallError when it cannot be removed.
        """
        link, say = self.link(artifact), on_progress or (lambda _line: None)
        place = _Place(self._bin_dir, link.name)
        if not (link.is_symlink() or link.exists() or read_receipt(link) is not None or place.exists()):
            return False
        worked = _is_proven(link)
        with _in_one_line(self._bin_dir):
            make_dir(place.root, what="--bin-dir")
            async with self._alone(place, say):
                if _is_proven(link) and not worked:
                    raise Conflict(f"{link.name} was installed meanwhile; ask again if it is to go")
                await asyncio.to_thread(refuse_used, link, place.final)
                say(f"removing {link.name}")
                # First, so that nobody takes it for proven meanwhile.
                remove_receipt(link)
                link.unlink(missing_ok=True)
                await asyncio.to_thread(place.clear)
        self._on_installed()
        return True

    async def _install(self, backend: str, artifact: ReleaseBinary, link: Path, say: Progress) -> None:
        place = _Place(self._bin_dir, link.name)
        make_dir(place.root, what="--bin-dir")
        make_dir(self._log_dir, what="--log-dir")
        with _in_one_line(self._bin_dir):
            async with self._alone(place, say):
                if _is_proven(link):
                    return
                output = self._log_dir / f"install_{link.name}.log"
                output.write_bytes(b"")
                # It may be there from before, or put there by hand.
                there = _behind(link)
                trouble = "" if there is None else await self._trouble(artifact, there, output)
                if trouble is not None:
                    if there is not None and not there.is_relative_to(place.root.resolve()):
                        raise InstallError(
                            f"{link} was not put there by GPUStack, and is not {backend} {artifact.version}: {trouble}; "
                            "move it away",
                            again=False,
                        )
                    await self._make(artifact, place, link, output, say)
                write_receipt(link, await asyncio.to_thread(_receipt, link, backend, artifact))
        self._on_installed()

    async def _make(
        self, artifact: ReleaseBinary, place: _Place, link: Path, output: Path, say: Progress
    ) -> None:
        started = time.monotonic()
        await asyncio.to_thread(place.clear_unfinished)
        sha256 = await self._fetch(artifact, place.archive, say)
        say(f"unpacking {link.name}")
        try:
            # To the end: what still writes must not meet the next attempt.
            await to_the_end(asyncio.to_thread(unpack, place.archive, place.new, self._bounds))
        except BadArchive as error:
            await asyncio.to_thread(place.clear)
            url = shown(elsewhere(artifact.url, self._base_url))
            raise InstallError(f"{url} cannot be used: {error}", again=False) from error
        executable = place.new / artifact.executable
        if not executable.is_file():
            await asyncio.to_thread(place.clear)
            raise InstallError(
                f"{shown(elsewhere(artifact.url, self._base_url))} holds no {artifact.executable}; it is another archive",
                again=False,
            )
        executable.chmod(executable.stat().st_mode | 0o755)
        say(f"checking {link.name}")
        if (trouble := await self._trouble(artifact, executable, output)) is not None:
            await asyncio.to_thread(place.clear)
            raise InstallError(f"{link.name} was installed but does not work: {trouble}; see {output}")
        await asyncio.to_thread(place.put, link, artifact.executable)
        self._log.info("%s: installed in %.1f s, SHA-256 %s", link.name, time.monotonic() - started, sha256)

    async def _fetch(self, artifact: ReleaseBinary, path: Path, say: Progress) -> str:
        url, name = elsewhere(artifact.url, self._base_url), _file(artifact)
        wanted = artifact.sha256
        if not wanted and artifact.checksums:
            say(f"looking up the digest of {name}")
            wanted = await self._fetcher.digest_of(elsewhere(artifact.checksums, self._base_url), name)
        say(f"downloading {name} from {shown(url)}")
        if not wanted:
            self._log.warning("%s comes without a digest: nobody can tell whether it was changed", shown(url))
        return await self._fetcher.fetch(Source(url=url, name=name, sha256=wanted, limit=_LARGEST), path, say)

    @asynccontextmanager
    async def _alone(self, place: _Place, say: Progress) -> AsyncIterator[None]:
        """Keep other processes from the same build. The lock ends with its holder, however that ends."""
        lock, waiting = FileLock(place.lock), False
        while not lock.acquire():
            if not waiting:
                say(f"waiting for another process that installs {place.name}")
                waiting = True
            await asyncio.sleep(0.2)
        try:
            yield
        finally:
            lock.release()

    async def _trouble(self, artifact: ReleaseBinary, executable: Path, output: Path) -> str | None:
        """Have the executable say its version; return None when it does, else why not."""
        # The archive's own libraries lie beside it.
        env = clean_environment(DEVICES, self._environ)
        env["LD_LIBRARY_PATH"] = os.pathsep.join(
            [str(executable.parent), *filter(None, [env.get("LD_LIBRARY_PATH")])]
        )
        before = len(_read(output))
        try:
            status = await run_child(
                [executable, "--version"],
                env=env,
                cwd=executable.parent,
                output=output,
                timeout=self._verify_timeout,
            )
        except TimeoutError:
            return f"it did not answer --version within {self._verify_timeout:.0f} s"
        except OSError as error:
            if error.errno == errno.ENOEXEC:
                return "it is no program for this machine"
            return f"it cannot be started: {error.strerror}"
        said = _read(output)[before:].decode("utf-8", "replace")
        if status != 0:
            last = (said.strip().splitlines() or ["it said nothing"])[-1].strip()[:300]
            return f"--version ended with status {status}: {last}"
        if not names(said, artifact.version.removeprefix("v")):
            return f"--version does not name version {artifact.version}"
        return None


class _Place:
    """The folders and files of one build below ``<bin_dir>/releases``; all but the last one begin with a dot."""

    def __init__(self, bin_dir: Path, name: str) -> None:
        self.root = bin_dir / "releases"
        self.name = name
        self.lock = self.root / f".{name}.lock"
        self.archive = self.root / f".{name}.archive"
        #: Where it is unpacked and proven before it gets its name.
        self.new = self.root / f".{name}.new"
        self._old = self.root / f".{name}.old"
        self.final = self.root / name

    def exists(self) -> bool:
        return any(each.exists() for each in (self.final, self.new, self._old, self.archive, self._part))

    @property
    def _part(self) -> Path:
        return self.archive.with_name(f"{self.archive.name}.part")

    def clear_unfinished(self) -> None:
        """Remove what an interrupted installation has unpacked; what it has fetched is continued."""
        for each in (self.new, self._old):
            if each.exists():
                shutil.rmtree(each)
        self.archive.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove all of it."""
        self.clear_unfinished()
        if self.final.exists():
            # Out of sight at once; a program that runs from it goes on.
            self.final.rename(self._old)
            shutil.rmtree(self._old)
        for each in (self._part, self._part.with_name(f"{self._part.name}.tag")):
            each.unlink(missing_ok=True)

    def put(self, link: Path, executable: str) -> None:
        """Give what was unpacked its name, in place of what had it, and have ``link`` lead to its executable."""
        if self.final.exists():
            self.final.rename(self._old)
        self.new.rename(self.final)
        temporary = self.root / f".{self.name}.link"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(Path(self.root.name) / self.name / executable)
        temporary.replace(link)
        self.clear_unfinished()


def _file(artifact: ReleaseBinary) -> str:
    return unquote(urlsplit(artifact.url).path.rpartition("/")[2])


def _name(artifact: ReleaseBinary) -> str:
    name = f"{_ENDS.sub('', _file(artifact))}_{artifact.version}"
    if not _NAME.fullmatch(name):
        raise InstallError(
            f"{name!r} is no name for an installation; the plugin has to change it", again=False
        )
    return name


def _behind(link: Path) -> Path | None:
    """Return the file that ``link`` leads to; None when it leads nowhere."""
    return link.resolve() if link.exists() else None


def _read(output: Path) -> bytes:
    return output.read_bytes()


def _is_proven(link: Path) -> bool:
    receipt = read_receipt(link)
    return receipt is not None and receipt.holds(link)


def _receipt(link: Path, backend: str, artifact: ReleaseBinary) -> Receipt:
    target = link.resolve(strict=True)
    seen = target.stat()
    return Receipt(
        backend=backend,
        version=artifact.version,
        wheel="",
        target=str(target),
        size=seen.st_size,
        changed=seen.st_mtime_ns,
        verified=datetime.now(UTC).isoformat(timespec="seconds"),
        disk=disk_use(releases(link.parent) / link.name),
    )


@contextmanager
def _in_one_line(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            with contextlib.suppress(OSError):
                free = shutil.disk_usage(folder).free
                raise InstallError(
                    f"the disk of {folder} is full ({free >> 20} MiB are free); make room, or choose another --bin-dir"
                ) from error
        raise InstallError(system_line(error)) from error
