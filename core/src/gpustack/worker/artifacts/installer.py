"""Installs engines, each version once and next to the others."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from gpustack.kit.locks import FileLock
from gpustack.kit.paths import make_dir, write_atomic
from gpustack.plugin import Artifact, PipxPackage, Refused, ReleaseBinary
from gpustack.worker.artifacts.archives import ArchiveInstaller
from gpustack.worker.artifacts.child import run_child
from gpustack.worker.artifacts.errors import InstallError
from gpustack.worker.artifacts.pipx import explain_failure, find_pipx, pipx_environment
from gpustack.worker.artifacts.receipts import Receipt, proven, read_receipt, remove_receipt, write_receipt
from gpustack.worker.environment import PACKAGES, clean_environment

Progress = Callable[[str], None]


class ArtifactInstaller:
    """Makes engines ready to run.

    Those that come as an archive are :class:`ArchiveInstaller`'s, with archives from below ``tools_url``. An engine of a
    package lies at ``<bin_dir>/NAME_VERSION``, a link that pipx makes, with a receipt
    ``NAME_VERSION.json`` beside it. pipx itself works below ``<data_dir>/pipx``; what it prints goes to
    ``<log_dir>/install_NAME_VERSION.log``. Several workers may share the folders. ``on_installed`` is called
    whenever :meth:`installed` has more to say.
    """

    def __init__(
        self,
        *,
        bin_dir: Path,
        data_dir: Path,
        log_dir: Path | None = None,
        pipx_path: str = "",
        tools_url: str = "",
        environ: Mapping[str, str] | None = None,
        timeout: float = 3600.0,
        verify_timeout: float = 120.0,
        log: logging.Logger | None = None,
        on_installed: Callable[[], None] = lambda: None,
    ) -> None:
        self._bin_dir = bin_dir
        self._home = data_dir / "pipx"
        self._log_dir = log_dir or data_dir / "log"
        self._pipx_path = pipx_path
        self._environ = os.environ if environ is None else environ
        self._timeout = timeout
        self._verify_timeout = verify_timeout
        self._log = log or logging.getLogger(__name__)
        self._on_installed = on_installed
        self._busy: dict[str, asyncio.Lock] = {}
        self._archives = ArchiveInstaller(
            bin_dir=bin_dir,
            log_dir=self._log_dir,
            base_url=tools_url,
            environ=environ,
            verify_timeout=verify_timeout,
            log=self._log,
            on_installed=on_installed,
        )

    def installed(self) -> dict[str, list[str]]:
        """Return the versions that were proven to work, by backend."""
        found: dict[str, list[str]] = {}
        for receipt in proven(self._bin_dir):
            found.setdefault(receipt.backend, []).append(receipt.version)
        return found

    async def ensure(self, backend: str, artifact: Artifact, on_progress: Progress | None = None) -> Path:
        """Return the path of the engine's executable, after installing it if need be.

        What was proven before and has not changed since costs a few file system calls and no process. Calls
        for the same engine wait for one another, also across processes. When this is cancelled, pipx ends with
        everything it started, and the next call repairs what it left.

        ``on_progress`` gets a line for each step. Raises InstallError with one line when the engine cannot be
        installed or does not run, and Refused for artifacts of a kind that cannot be installed.
        """
        if isinstance(artifact, ReleaseBinary):
            return await self._archives.ensure(backend, artifact, on_progress)
        artifact = _package(backend, artifact)
        link = self.link(artifact)
        if _is_proven(artifact, link):
            return link
        async with self._busy.setdefault(link.name, asyncio.Lock()):
            if not _is_proven(artifact, link):
                await self._install(backend, artifact, link, on_progress or (lambda _line: None))
        return link

    def link(self, package: PipxPackage | ReleaseBinary) -> Path:
        """Return where the engine's executable is, or would be."""
        if isinstance(package, ReleaseBinary):
            return self._archives.link(package)
        return self._bin_dir / f"{package.command}_{package.version}"

    async def remove(self, backend: str, artifact: Artifact, on_progress: Progress | None = None) -> bool:
        """Take an engine away again; False when there is none. The caller has seen to it that none of it runs.

        What an interrupted removal, or a data directory that is gone, left of it goes too. Raises InstallError with
        one line when it cannot be removed.
        """
        if isinstance(artifact, ReleaseBinary):
            return await self._archives.remove(artifact, on_progress)
        package, say = _package(backend, artifact), on_progress or (lambda _line: None)
        link = self.link(package)
        if not (link.is_symlink() or _exists(link) or read_receipt(link) is not None):
            return False
        make_dir(self._home, what="data directory")
        async with self._alone(link.name, say):
            await self._uninstall(package, link, say)
            link.unlink(missing_ok=True)
            remove_receipt(link)
        self._on_installed()
        return True

    async def _uninstall(self, package: PipxPackage, link: Path, say: Progress) -> None:
        environment = _environment(link)
        if not environment.is_relative_to((self._home / "venvs").resolve()):
            if _exists(link):
                raise InstallError(
                    f"{link} leads to {environment}, which another GPUStack installed; remove it there, with its "
                    "--data-dir",
                    again=False,
                )
            return
        # First, so that nobody takes it for proven meanwhile.
        remove_receipt(link)
        if not environment.exists():
            return
        make_dir(self._log_dir, what="--log-dir")
        output = self._log_dir / f"remove_{link.name}.log"
        say(f"removing {package.package} {package.version} with pipx")
        status = await self._pipx("uninstall", environment.name, link=link, output=output)
        if status != 0:
            why, again = explain_failure(_read(output))
            raise InstallError(f"{link.name} cannot be removed: {why}; see {output}", again=again)

    async def _install(self, backend: str, package: PipxPackage, link: Path, say: Progress) -> None:
        for folder, what in (
            (self._home, "data directory"),
            (self._bin_dir, "--bin-dir"),
            (self._log_dir, "--log-dir"),
        ):
            make_dir(folder, what=what)
        async with self._alone(link.name, say):
            if _is_proven(package, link):
                return
            output = self._log_dir / f"install_{link.name}.log"
            output.write_bytes(b"")
            # It may be there from before, or put there by hand; then pipx has nothing to do.
            usable = _exists(link) and not _is_outdated(package, link)
            if not usable or await self._trouble(package, link, output) is not None:
                await self._run_pipx(package, link, output, say)
                say(f"checking {link.name}")
                if (trouble := await self._trouble(package, link, output)) is not None:
                    raise InstallError(
                        f"{link.name} was installed but does not work: {trouble}; see {output}"
                    )
            write_receipt(
                link, Receipt.of(link, backend=backend, version=package.version, wheel=_digest(package))
            )
            self._on_installed()

    @asynccontextmanager
    async def _alone(self, name: str, say: Progress) -> AsyncIterator[None]:
        """Keep other processes from the same engine. The lock ends with its holder, however that ends."""
        lock = FileLock(self._home / f".{name}.lock")
        waiting = False
        while not lock.acquire():
            if not waiting:
                say(f"waiting for another process that installs {name}")
                waiting = True
            await asyncio.sleep(0.2)
        try:
            yield
        finally:
            lock.release()

    async def _run_pipx(self, package: PipxPackage, link: Path, output: Path, say: Progress) -> None:
        say(f"installing {package.package} {package.version} with pipx")
        started = time.monotonic()
        # --force also repairs what an interrupted installation left behind.
        flags = ["--verbose", "--force", "--suffix", f"_{package.version}"]
        status = await self._pipx("install", *flags, self._what(package), link=link, output=output)
        if status != 0:
            why, again = explain_failure(_read(output))
            raise InstallError(f"{link.name} cannot be installed: {why}; see {output}", again=again)
        # Status 0 also comes when the name belongs to another environment, or the link is missing.
        if not _exists(link):
            raise InstallError(f"{link.name} cannot be installed: pipx made no {link}; see {output}")
        self._log.info("%s: installed in %.1f s", link.name, time.monotonic() - started)

    async def _pipx(self, *words: str, link: Path, output: Path) -> int:
        """Run pipx to its end and return its exit status; it is cut off when it takes too long."""
        pipx = find_pipx(self._pipx_path, self._environ)
        env = pipx_environment(self._environ, home=self._home, bin_dir=self._bin_dir)
        try:
            return await run_child(
                [*pipx, *words], env=env, cwd=self._home, output=output, timeout=self._timeout
            )
        except TimeoutError:
            why = f"pipx was not done after {self._timeout:.0f} s"
            raise InstallError(f"{link.name} cannot be {words[0]}ed: {why}; see {output}") from None
        except OSError as error:
            raise InstallError(
                f"pipx cannot be started ({pipx[0]}: {error.strerror}); check --pipx-path"
            ) from error

    def _what(self, package: PipxPackage) -> str:
        """Return what pipx is told to install; a wheel is put where pipx can read it again later."""
        if package.wheel is None:
            return f"{package.package}=={package.version}"
        folder = make_dir(self._home / "wheels", what="data directory")
        path = folder / package.wheel_name
        if not path.exists() or path.read_bytes() != package.wheel:
            write_atomic(path, package.wheel)
        return str(path)

    async def _trouble(self, package: PipxPackage, link: Path, output: Path) -> str | None:
        """Run the engine's own check; return None when it works, else why not."""
        command = [str(link), *package.verify]
        before = len(_read(output))
        env = clean_environment(PACKAGES, self._environ)
        try:
            status = await run_child(
                command, env=env, cwd=self._home, output=output, timeout=self._verify_timeout
            )
        except TimeoutError:
            return f"it did not answer {' '.join(package.verify)} within {self._verify_timeout:.0f} s"
        except OSError as error:
            return f"it cannot be started: {error.strerror}"
        said = _read(output)[before:]
        if status != 0:
            last = (said.strip().splitlines() or ["it said nothing"])[-1]
            return f"{' '.join(package.verify)} ended with status {status}: {last.strip()[:300]}"
        if package.version not in said:
            return f"{' '.join(package.verify)} does not name version {package.version}"
        return None


def _package(backend: str, artifact: Artifact) -> PipxPackage:
    if not isinstance(artifact, PipxPackage):
        kind = type(artifact).__name__
        raise Refused(
            f"backend {backend} comes as {kind}, and this worker installs packages with pipx, and archives"
        )
    return artifact


def _environment(link: Path) -> Path:
    """Return the folder of the Python environment that ``link`` leads into, whether it is there or not."""
    return link.resolve().parent.parent


def _exists(link: Path) -> bool:
    return link.exists()


def _digest(package: PipxPackage) -> str:
    return "" if package.wheel is None else hashlib.sha256(package.wheel).hexdigest()


def _is_proven(package: PipxPackage, link: Path) -> bool:
    receipt = read_receipt(link)
    return receipt is not None and receipt.wheel == _digest(package) and receipt.holds(link)


def _is_outdated(package: PipxPackage, link: Path) -> bool:
    """Tell whether it was made from another wheel of that version, such as an older launcher."""
    receipt = read_receipt(link)
    return receipt is not None and receipt.wheel != _digest(package)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")
