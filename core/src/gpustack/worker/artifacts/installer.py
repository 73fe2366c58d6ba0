"""Installs engines, each version once and next to the others."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import shutil
import stat
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from packaging.utils import canonicalize_name

from gpustack.kit.errors import Conflict, GPUStackError
from gpustack.kit.limits import user_id
from gpustack.kit.locks import FileLock
from gpustack.kit.paths import make_dir, write_atomic
from gpustack.kit.tasks import to_the_end
from gpustack.plugin import Artifact, PipxPackage, Refused, ReleaseBinary
from gpustack.worker.artifacts.child import run_child
from gpustack.worker.artifacts.errors import InstallError
from gpustack.worker.artifacts.folders import (
    MARKER,
    Journal,
    disk_use,
    empty_trash,
    folders_of,
    refuse_used,
    throw_away,
    unfinished,
    users,
    venvs,
)
from gpustack.worker.artifacts.pins import Pins, a_pip
from gpustack.worker.artifacts.pipx import explain_failure, find_pipx, pipx_environment, takes_uv
from gpustack.worker.artifacts.proof import trouble_of
from gpustack.worker.artifacts.receipts import (
    Held,
    Receipt,
    environments,
    note_use,
    proven,
    read_receipt,
    releases,
    remove_receipt,
    write_receipt,
)
from gpustack.worker.artifacts.recipe import Recipe
from gpustack.worker.artifacts.releases import ArchiveInstaller
from gpustack.worker.artifacts.steps import told
from gpustack.worker.artifacts.wheels import Wheels

Progress = Callable[[str], None]
#: The name of the receipt inside of an environment, for links to it from elsewhere.
_INSIDE = "gpustack"


@dataclass(slots=True)
class _Going:
    """An install that is going on, and whom it tells its steps."""

    task: asyncio.Task[None] | None = None
    wanted: list[Progress] = field(default_factory=list)
    last: str = ""

    def say(self, line: str) -> None:
        self.last = line
        for each in list(self.wanted):
            each(line)


class ArtifactInstaller:
    """Makes engines ready to run.

    Those that come as an archive are :class:`ArchiveInstaller`'s, with archives from below ``tools_url``. An engine of a
    package lies at ``<bin_dir>/NAME_VERSION``, a link that pipx makes, with a receipt
    ``NAME_VERSION.json`` beside it; with packages that a deployment adds, ``NAME_VERSION_DIGEST``. pipx itself works
    below ``<data_dir>/pipx``; what it prints goes to ``<log_dir>/install_NAME_VERSION.log``. Several workers may share
    the folders. ``on_installed`` is called whenever :meth:`installed` has more or less to say.
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
        self.bin_dir = bin_dir
        self.home = data_dir / "pipx"
        self._log_dir = log_dir or data_dir / "log"
        self._pipx_path = pipx_path
        self._environ = os.environ if environ is None else environ
        self._timeout = timeout
        self._verify_timeout = verify_timeout
        self._log = log or logging.getLogger(__name__)
        self._on_installed = on_installed
        self._going: dict[Recipe, _Going] = {}
        self.journal = Journal(self.home, bin_dir)
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
        """Return the versions that were proven to work, by backend; not those with packages of a deployment's."""
        found: dict[str, list[str]] = {}
        for receipt in proven(self.bin_dir):
            if not receipt.extras:
                found.setdefault(receipt.backend, []).append(receipt.version)
        return found

    def environments(self) -> list[Held]:
        """Return all environments that were proven to work, with how much they take and when they were used."""
        return list(environments(self.bin_dir))

    def root_of(self, held: Held) -> Path | None:
        """Return the folder with the lock of an environment that is ours to take away, on the same disk.

        None for one that a GPUStack with another data directory installed, or that was put there by hand.
        """
        for root, inside in ((self.home, venvs(self.home)), (releases(self.bin_dir), releases(self.bin_dir))):
            if held.folder.resolve().is_relative_to(inside.resolve()):
                return root
        return None

    async def ensure(
        self,
        backend: str,
        artifact: Artifact,
        on_progress: Progress | None = None,
        extras: tuple[str, ...] = (),
    ) -> Path:
        """Return the path of the engine's executable, after installing it if need be.

        What was proven before and has not changed since costs a few file system calls and no process. Calls
        for the same engine wait for one another, also across processes. When all of them are cancelled, pipx ends
        with everything it started, and nothing of it is left.

        ``extras`` are packages that a deployment adds: the engine with them is another environment.
        ``on_progress`` gets a line for each step. Raises InstallError with one line when the engine cannot be
        installed or does not run, and Refused for artifacts of a kind that cannot be installed.
        """
        if isinstance(artifact, ReleaseBinary):
            _no_extras(backend, extras)
            command = await self._archives.ensure(backend, artifact, on_progress)
            note_use(self._archives.link(artifact))
            return command
        recipe = Recipe.of(backend, artifact, extras)
        link = self.bin_dir / recipe.name
        if not _is_proven(recipe, link):
            await self._together(recipe, link, on_progress or (lambda _line: None))
        note_use(link)
        return link

    def link(self, package: PipxPackage | ReleaseBinary, extras: tuple[str, ...] = ()) -> Path:
        """Return where the engine's executable is, or would be."""
        if isinstance(package, ReleaseBinary):
            return self._archives.link(package)
        return self.bin_dir / Recipe(backend="", package=package, extras=extras).name

    async def remove(
        self,
        backend: str,
        artifact: Artifact,
        on_progress: Progress | None = None,
        extras: tuple[str, ...] = (),
    ) -> bool:
        """Take an engine away again; False when there is none.

        What an interrupted removal, or a data directory that is gone, left of it goes too, and so do wheels that were
        imported for it. An install that is going on is awaited. Raises Conflict with one line while something runs from
        it, and when it was made meanwhile; InstallError with one line when it cannot be removed.
        """
        if isinstance(artifact, ReleaseBinary):
            _no_extras(backend, extras)
            return await self._archives.remove(artifact, on_progress)
        recipe, say = Recipe.of(backend, artifact, extras), on_progress or (lambda _line: None)
        link = self.bin_dir / recipe.name
        wheels = Wheels(self.home, recipe.name)

        def something() -> bool:
            return link.is_symlink() or link.exists() or read_receipt(link) is not None or wheels.exists()

        if not something() and not self.journal.path(recipe.name).exists():
            return False
        worked = _is_proven(recipe, link)
        make_dir(self.home, what="data directory")
        async with self.alone(link.name, say):
            if not something():
                return False
            if _is_proven(recipe, link) and not worked:
                raise Conflict(f"{link.name} was installed meanwhile; ask again if it is to go")
            await self._uninstall(recipe, link, say)
            link.unlink(missing_ok=True)
            remove_receipt(link)
            await asyncio.to_thread(wheels.forget)
        self._on_installed()
        return True

    async def fetch(
        self, recipe: Recipe, link: Path, requirements: list[str], folder: Path, say: Progress
    ) -> None:
        """Put the wheels of ``requirements`` for the Python of an environment into ``folder``, and nothing besides.

        What has no wheel is built. Raises InstallError with one line.
        """
        output = make_dir(self._log_dir, what="--log-dir") / f"export_{recipe.name}.log"
        output.write_bytes(b"")

        async def run(command: list[str], what: str) -> int:
            say(what)
            return await self._run(command, link=link, output=output, verb="export")

        pip = await a_pip(self.home, run)
        listed = folder / "requirements.txt"
        write_atomic(listed, "".join(f"{each}\n" for each in requirements))
        python = str(_environment(link) / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))
        command = [*pip, "--python", python, "wheel", "--no-deps", "-r", str(listed), "-w", str(folder)]
        if await run(command, f"fetching the {len(requirements)} packages of {recipe.title}"):
            why, again = explain_failure(_read(output))
            raise InstallError(f"{recipe.name} cannot be exported: {why}; see {output}", again=again)

    async def settle(self) -> list[str]:
        """Undo what installs that were killed have left; return their names. What is just being made stays.

        What cannot be looked at, such as another user's, is a line in the log.
        """
        if not self.home.is_dir():
            return []
        settled = []
        for name in list(self.journal.unfinished()):
            lock = FileLock(self.home / f".{name}.lock")
            try:
                if lock.acquire() and await asyncio.to_thread(self.journal.settle, name):
                    settled.append(name)
            except (GPUStackError, OSError) as error:
                self._log.warning("what an install of %s has left cannot be undone: %s", name, error)
            finally:
                lock.release()
        for name, folder in await asyncio.to_thread(lambda: list(unfinished(self.home))):
            lock = FileLock(self.home / f".{name}.lock")
            try:
                if lock.acquire():
                    await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
            except (GPUStackError, OSError) as error:
                self._log.warning("%s cannot be removed: %s", folder, error)
            finally:
                lock.release()
        for root in (self.home, releases(self.bin_dir)):
            await asyncio.to_thread(empty_trash, root)
        return settled

    def changed(self) -> None:
        """Say that an environment has come or gone by other hands than these methods'."""
        self._on_installed()

    async def _uninstall(self, recipe: Recipe, link: Path, say: Progress) -> None:
        environment = _environment(link)
        if not environment.is_relative_to(venvs(self.home).resolve()):
            if _exists(link):
                raise InstallError(
                    f"{link} leads to {environment}, which another GPUStack installed; remove it there, with its "
                    "--data-dir",
                    again=False,
                )
            return
        await asyncio.to_thread(refuse_used, link, environment)
        # First, so that nobody takes it for proven meanwhile.
        remove_receipt(link)
        if not environment.exists():
            return
        make_dir(self._log_dir, what="--log-dir")
        output = self._log_dir / f"remove_{link.name}.log"
        say(f"removing {recipe.title} with pipx")
        status = await self._pipx("uninstall", environment.name, link=link, output=output)
        if status != 0:
            why, again = explain_failure(_read(output), status)
            raise InstallError(f"{link.name} cannot be removed: {why}; see {output}", again=again)

    async def _together(self, recipe: Recipe, link: Path, say: Progress) -> None:
        """Install, in one task for all who want that; it is cancelled with the last of them."""
        going = self._going.get(recipe)
        if going is None:
            going = self._going[recipe] = _Going()
            going.task = asyncio.create_task(self._install(recipe, link, going.say))
            going.task.add_done_callback(lambda _task: self._over(recipe, going))
        elif going.last:
            say(going.last)
        # Not a set: one method may be given twice.
        going.wanted.append(say)
        assert going.task is not None
        try:
            await asyncio.shield(going.task)
        finally:
            going.wanted.remove(say)
            if not going.wanted and not going.task.done():
                # Who comes now begins anew, once the lock is free.
                self._over(recipe, going)
                going.task.cancel()
                await to_the_end(_ended(going.task))

    def _over(self, recipe: Recipe, going: _Going) -> None:
        if self._going.get(recipe) is going:
            del self._going[recipe]

    async def _install(self, recipe: Recipe, link: Path, say: Progress) -> None:
        for folder, what in (
            (self.home, "data directory"),
            (self.bin_dir, "--bin-dir"),
            (self._log_dir, "--log-dir"),
        ):
            make_dir(folder, what=what)
        if others := _who_may_change(self.bin_dir):
            self._log.warning("--bin-dir %s: %s can exchange the engines in it", self.bin_dir, others)
            say(f"--bin-dir {self.bin_dir}: {others} can exchange the engines in it")
        async with self.alone(link.name, say):
            if _is_proven(recipe, link):
                return
            await asyncio.to_thread(self.journal.settle, recipe.name)
            output = self._log_dir / f"install_{link.name}.log"
            output.write_bytes(b"")
            await asyncio.to_thread(self._link_again, recipe, link)
            foreign = self._is_foreign(recipe, link)
            # It may be there from before, or put there by hand; then pipx has nothing to do.
            usable = _exists(link) and (foreign or not _is_outdated(recipe, link))
            trouble = await self._trouble(recipe, link, output) if usable else ""
            if trouble is not None:
                if foreign:
                    raise InstallError(
                        f"{link} was not put there by GPUStack, and is not {recipe.title}: {trouble}; move it away",
                        again=False,
                    )
                await asyncio.to_thread(self._refuse_of_another, recipe, link)
                await self._make(recipe, link, output, say)
            disk = await asyncio.to_thread(disk_use, _environment(link))
            receipt = Receipt.of(link, recipe, disk=disk)
            write_receipt(link, receipt)
            for folder in self._folders(recipe, link):
                write_receipt(folder / _INSIDE, receipt)
            self._on_installed()

    def _folders(self, recipe: Recipe, link: Path) -> list[Path]:
        """Return the environment that ``link`` leads into, if it is one of ours."""
        target = link.resolve()
        return [
            each for each in folders_of(self.home, recipe.folder) if target.is_relative_to(each.resolve())
        ]

    def _is_foreign(self, recipe: Recipe, link: Path) -> bool:
        """Tell whether something is at ``link`` that no GPUStack has put there."""
        if not _exists(link) or os.name == "nt":  # there pipx makes copies, which look like anybody's
            return False
        folder = _environment(link)
        others = link.is_symlink() and canonicalize_name(folder.name) == recipe.folder
        return not others and not link.resolve().is_relative_to(venvs(self.home).resolve())

    def _link_again(self, recipe: Recipe, link: Path) -> None:
        """Put a link to the environment that is there already, such as for another ``bin_dir``, where there is none."""
        if os.path.lexists(link) or os.name == "nt":
            return
        for folder in folders_of(self.home, recipe.folder):
            receipt = read_receipt(folder / _INSIDE)
            if receipt is None or not receipt.is_of(recipe) or not receipt.holds(Path(receipt.target)):
                continue
            if (wheels := Wheels(self.home, recipe.name)).exists():
                wheels.check()
            link.symlink_to(receipt.target)

    def _refuse_of_another(self, recipe: Recipe, link: Path) -> None:
        """Raise InstallError where the environment would be made anew under what runs by another ``bin_dir``'s link."""
        if self._folders(recipe, link):
            return
        for folder in folders_of(self.home, recipe.folder):
            if running := users(folder):
                raise InstallError(
                    f"{link} cannot be made: process {running[0].pid} runs from its environment {folder}, which another "
                    "--bin-dir leads to; name that one, or another --data-dir"
                )

    async def _make(self, recipe: Recipe, link: Path, output: Path, say: Progress) -> None:
        """Have pipx make the environment, and prove it; what does not work is taken away again."""
        work = self.journal.begin(recipe)
        for folder in folders_of(self.home, recipe.folder):
            remove_receipt(folder / _INSIDE)
        pins = self._pins()
        try:
            await self._run_pipx(recipe, link, output, say, pins)
            say(f"checking {link.name}")
            if (trouble := await self._trouble(recipe, link, output)) is not None:
                await asyncio.to_thread(lambda: throw_away(self.journal.discard(recipe.folder)))
                raise InstallError(
                    f"{link.name} was installed but does not work, and was removed again: {trouble}; see {output}"
                )
        except asyncio.CancelledError:
            # Out of sight while the lock is held; who cancels does not wait for the rest.
            threading.Thread(target=throw_away, args=(self.journal.undo(work),), daemon=True).start()
            raise
        except Exception:
            await asyncio.to_thread(lambda: throw_away(self.journal.undo(work)))
            raise
        finally:
            pins.forget(recipe)
        self.journal.end(work)

    @asynccontextmanager
    async def alone(self, name: str, say: Progress, root: Path | None = None) -> AsyncIterator[None]:
        """Keep other processes from the same engine. The lock ends with its holder, however that ends.

        ``root`` has the locks of its kind; None is where packages are.
        """
        lock = FileLock((root or self.home) / f".{name}.lock")
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

    def _pins(self) -> Pins:
        uv = takes_uv(self._environ, self._pipx_path)
        return Pins(home=self.home, environ=self._child_environment(""), uv=uv)

    async def _run_pipx(self, recipe: Recipe, link: Path, output: Path, say: Progress, pins: Pins) -> None:
        package = recipe.package
        say(f"installing {recipe.title} with pipx")
        started = time.monotonic()

        async def run(command: list[str], what: str) -> int:
            say(what)
            return await self._run(command, link=link, output=output, verb="install")

        # --force also repairs what an interrupted installation left behind.
        flags = ["--verbose", "--force", "--suffix", recipe.suffix]
        before = 0
        try:
            if arguments := await pins.arguments(recipe, run):
                flags.append(f"--pip-args={shlex.join(arguments)}")
            async with told(output, f"{package.package} {package.version}", say):
                before = _size(output)
                status = await self._pipx("install", *flags, self._what(package), link=link, output=output)
        except InstallError as error:
            if error.message:
                raise
            status = 1
        if status != 0:
            # What came before, such as a download that succeeded, is no reason.
            why, again = explain_failure(_read(output, before), status)
            raise InstallError(f"{link.name} cannot be installed: {why}; see {output}", again=again)
        # Status 0 also comes when the name belongs to another environment, or the link is missing.
        if not _exists(link):
            raise InstallError(f"{link.name} cannot be installed: pipx made no {link}; see {output}")
        self._log.info("%s: installed in %.1f s", link.name, time.monotonic() - started)

    async def _pipx(self, *words: str, link: Path, output: Path) -> int:
        """Run pipx to its end and return its exit status; it is cut off when it takes too long."""
        pipx = find_pipx(self._pipx_path, self._environ)
        return await self._run([*pipx, *words], link=link, output=output, verb=words[0])

    async def _run(self, command: list[str], *, link: Path, output: Path, verb: str) -> int:
        env = self._child_environment(str(self.journal.path(link.name)))
        try:
            return await run_child(command, env=env, cwd=self.home, output=output, timeout=self._timeout)
        except TimeoutError:
            why = f"pipx was not done after {self._timeout:.0f} s"
            raise InstallError(f"{link.name} cannot be {verb}ed: {why}; see {output}") from None
        except OSError as error:
            raise InstallError(
                f"pipx cannot be started ({command[0]}: {error.strerror}); check --pipx-path"
            ) from error

    def _child_environment(self, mark: str) -> dict[str, str]:
        uv = takes_uv(self._environ, self._pipx_path)
        env = pipx_environment(self._environ, home=self.home, bin_dir=self.bin_dir, uv=uv)
        return env | ({MARKER: mark} if mark else {})

    def _what(self, package: PipxPackage) -> str:
        """Return what pipx is told to install; a wheel is put where pipx can read it again later."""
        if package.wheel is None:
            return f"{package.package}=={package.version}"
        folder = make_dir(self.home / "wheels", what="data directory")
        path = folder / package.wheel_name
        if not path.exists() or path.read_bytes() != package.wheel:
            write_atomic(path, package.wheel)
        return str(path)

    async def _trouble(self, recipe: Recipe, link: Path, output: Path) -> str | None:
        """Run the engine's own check, and import what it has to; return None when all works, else why not."""
        return await trouble_of(
            recipe.package,
            link,
            environ=self._environ,
            cwd=self.home,
            output=output,
            timeout=self._verify_timeout,
            mark=str(self.journal.path(link.name)),
        )


async def _ended(task: asyncio.Task[None]) -> None:
    """Wait for the end of a task that was cancelled; how it ends concerns nobody any more."""
    await asyncio.gather(task, return_exceptions=True)


def _no_extras(backend: str, extras: tuple[str, ...]) -> None:
    if extras:
        raise Refused(
            f"backend {backend} comes as an archive, which has no environment that {extras[0]} could be added to"
        )


def _who_may_change(folder: Path) -> str:
    """Return who else may change what is in ``folder``, in words; empty for nobody but us and the administrator."""
    status = folder.stat()
    if os.name == "nt":
        return ""
    if status.st_uid not in (0, user_id()):
        return f"its owner, user {status.st_uid},"
    return "every user" if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX else ""


def _environment(link: Path) -> Path:
    """Return the folder of the Python environment that ``link`` leads into, whether it is there or not."""
    return link.resolve().parent.parent


def _exists(link: Path) -> bool:
    return link.exists()


def _is_proven(recipe: Recipe, link: Path) -> bool:
    receipt = read_receipt(link)
    return receipt is not None and receipt.is_of(recipe) and receipt.holds(link)


def _is_outdated(recipe: Recipe, link: Path) -> bool:
    """Tell whether it was made otherwise, such as from an older launcher or without a package."""
    receipt = read_receipt(link)
    return receipt is not None and not receipt.is_of(recipe)


def _read(path: Path, start: int = 0) -> str:
    return path.read_bytes()[start:].decode("utf-8", errors="replace")


def _size(path: Path) -> int:
    return path.stat().st_size
