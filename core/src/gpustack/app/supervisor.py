"""The supervisor: a small process that keeps the others running and ends them all.

Run as ``python -m gpustack.app.supervisor FD``, where FD gives as JSON the settings, the flags that they came from, and
what the program before it in the same process has handed down, if there was one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from gpustack import __version__
from gpustack.app import banner, door_orders, doors, sockets
from gpustack.app.banner import say
from gpustack.app.children import ENDING, PythonChild, Unit
from gpustack.app.database import DatabaseUnit
from gpustack.app.disks import Disks
from gpustack.app.door_orders import Door, Found
from gpustack.app.door_unit import DoorUnit
from gpustack.app.ending import Ending
from gpustack.app.gateway_units import chosen, gateway_units
from gpustack.app.limits import allow_open_files
from gpustack.app.reload import Change, change
from gpustack.app.restart import Control, Inherited, answer, replace, settings_now
from gpustack.app.rundir import RunDir
from gpustack.kit.errors import GPUStackError, SettingsError, system_line
from gpustack.kit.images import own_image
from gpustack.kit.local_sockets import Channel
from gpustack.kit.net import LOOPBACK, bracketed, interface_addresses, own_address, spare_proxies
from gpustack.kit.paths import make_dir
from gpustack.kit.process import RETIRE, identify
from gpustack.kit.tasks import Tasks
from gpustack.kit.terminal import has_terminal
from gpustack.server.config import kept_secret

#: Seconds after which a worker says what it waits for.
_PATIENCE = 5.0


class Supervisor:
    """One ``gpustack start``: its sockets, its children, its end."""

    def __init__(self, settings: dict[str, Any], flags: dict[str, Any], inherited: Inherited | None) -> None:
        self.settings = settings
        #: As they were read; what we make up ourselves, such as a token, is no change of theirs.
        self._as_read = dict(settings)
        self.data_dir = Path(settings["data_dir"])
        self.log_dir = Path(settings["log_dir"])
        self._flags = flags
        self._inherited = inherited or Inherited()
        #: This program took the place of another in the same process.
        self._restarted = inherited is not None
        self._waiting = [Channel(socket.socket(fileno=fd)) for fd in self._inherited.waiting]
        self._began = time.monotonic()
        self._run_dir = RunDir(self.data_dir)
        self._control = Control(self._run_dir.path)
        places = {"data directory": self.data_dir, "log directory": self.log_dir}
        places |= {"cache directory": Path(settings["cache_dir"]), "--bin-dir": Path(settings["bin_dir"])}
        self._disks = Disks(places, say, self._publish)
        self._sockets: dict[str, socket.socket] = {}
        self._units: list[Unit] = []
        self._door: DoorUnit
        self._ready = False
        #: What ran before us: a start that fails leaves it as it was.
        self._found_door = self._found_engines = False
        self._ending = asyncio.Event()
        self._restarting = asyncio.Event()
        self._hurry = asyncio.Event()
        self._reload_asked = asyncio.Event()
        #: One change of the settings at a time.
        self._changing = asyncio.Lock()
        self._identity = identify(os.getpid())
        self._url = settings["server_url"]

    async def run(self) -> int:
        """Start everything, wait for the end, and end everything; returns the exit status."""
        loop = asyncio.get_running_loop()
        hang_up = None if hang_up_ends() else getattr(signal, "SIGHUP", None)
        for number in ENDING:
            loop.add_signal_handler(number, self._reload_asked.set if number == hang_up else self._signalled)
        if sys.platform != "win32":
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        try:
            self._run_dir.claim(self._inherited.lock)
            try:
                make_dir(self.log_dir, what="log directory")
                await self._prepare()
                self._control.open()
                return await self._supervise()
            finally:
                self._control.close()
                self._run_dir.release()
        except GPUStackError as error:
            self._tell_waiting(error=error.message)
            raise

    def _signalled(self) -> None:
        if self._ending.is_set():
            self._hurry.set()
            return
        self._ending.set()
        say("stopping; once more stops at once")

    # Sockets and children -------------------------------------------------------------------------------

    async def _prepare(self) -> None:
        """Take over or open the sockets and describe the children; none of them is started yet."""
        asked = sockets.wanted(self.settings)
        forked = await asyncio.to_thread(door_orders.forked_before)
        found = await asyncio.to_thread(door_orders.find, self._run_dir.path)
        self._found_door = found is not None
        self._found_engines = any((self._run_dir.path / "instances").glob("*.json"))
        kept = found.sockets if found is not None else {}
        if found is not None and not found.suits(asked.get("door")):
            await asyncio.to_thread(door_orders.retire, self._run_dir.path, found.door)
            found = None
        lent = await asyncio.to_thread(door_orders.lent_by_gateways, self._run_dir.path)
        present = sockets.together(self._inherited.sockets, sockets.together(kept, lent))
        for name in list(present):
            if name not in asked or not asked[name].fits(present[name]):
                present.pop(name).close()
                if found is not None:
                    await asyncio.to_thread(door_orders.drop, found, name)
        self._sockets = {
            name: present[name] if name in present else want.open() for name, want in asked.items()
        }
        self._describe_units(found, forked)

    def _describe_units(self, found: Found | None, forked: list[Door]) -> None:
        server = urlsplit(self.settings["server_url"]).hostname or ""
        address = self.settings["advertise_address"] or self._interface_address() or own_address(server)
        self._door = DoorUnit(
            self.data_dir,
            own=self._sockets.get("door"),
            kept={name: sock for name, sock in self._sockets.items() if name != "door"},
            found=found,
            forked_before=forked,
            debug=self.settings["debug"],
            log_path=self.log_dir / "door.log",
            say=say,
            changed=self._publish,
        )
        if "http" in self._sockets:
            self._describe_server(address)
        if "worker" in self._sockets:
            self._describe_worker(address)
        self._units.append(self._door)

    def _tls_url(self) -> str:
        if "https" not in self._sockets:
            return ""
        port = self._sockets["https"].getsockname()[1]
        host = bracketed(self.settings["advertise_address"] or own_address())
        return f"https://{host}" + ("" if port == 443 else f":{port}")

    def _interface_address(self) -> str:
        """Return the first address of the interface that the settings name; empty when they name none, or it has none."""
        name = self.settings["worker_ifname"]
        return next(iter(interface_addresses().get(name, ())), "") if name else ""

    def _describe_server(self, address: str) -> None:
        port = self._sockets["http"].getsockname()[1]
        plain = f"http://{bracketed(address)}" + ("" if port == 80 else f":{port}")
        self._url = self.settings["server_external_url"] or plain
        # One process decides, before two others would make one each.
        self.settings["token"] = kept_secret(self.data_dir / "token", self.settings["token"])
        database = DatabaseUnit(
            self.settings["database_url"], self.data_dir, self.log_dir, say, self._publish
        )

        # Kept: a gateway of the supervisor before us may still pass requests on.
        data_path = chosen(self.settings).data_path > 0
        mark = kept_secret(self.data_dir / "run" / "gateway_mark") if data_path else ""
        urls = [url for url in (self._url, self._tls_url()) if url]

        async def configuration() -> dict[str, Any]:
            known = {"settings": self.settings, "address": address, "mark": mark, "urls": urls}
            return {**known, "database_url": await database.url()}

        public: dict[str, int] = {
            name: self._sockets[name].fileno() for name in ("http", "https") if name in self._sockets
        }
        api = {"api": self._sockets["api"].fileno()}
        server = self._child("server", api if mark else {**public, **api}, configuration)
        gateway = gateway_units(
            self.settings,
            mark=mark,
            sockets=public,
            api_port=lambda: int(self._sockets["api"].getsockname()[1]),
            say=say,
            changed=self._publish,
        )
        self._units += [database, server, *gateway]

    def _describe_worker(self, address: str) -> None:
        server = self.settings["server_url"]
        if not server:
            server = f"http://{LOOPBACK}:{self._sockets['api'].getsockname()[1]}"
        port = self._sockets["door"].getsockname()[1]

        async def configuration() -> dict[str, Any]:
            return {"settings": self.settings, "server_url": server, "address": address, "port": port}

        self._units.append(self._child("worker", {"http": self._sockets["worker"].fileno()}, configuration))

    def _child(self, name: str, sockets: dict[str, int], configuration: Any) -> PythonChild:
        return PythonChild(
            name,
            self.data_dir,
            configuration=configuration,
            sockets=sockets,
            log_path=self.log_dir / f"{name}.log",
            say=say,
            changed=self._publish,
        )

    # While it runs --------------------------------------------------------------------------------------

    async def _supervise(self) -> int:
        keeping = {asyncio.create_task(unit.run(), name=unit.name): unit for unit in self._units}
        async with Tasks("supervisor") as tasks:
            tasks.start("announcing", self._announce())
            tasks.start("orders", self._take_orders())
            tasks.start("disks", self._disks.run())
            tasks.start("reloading", self._reload_when_asked())
            failed = await self._until_something_happens(keeping)
        for task in keeping:
            task.cancel()
        end = Ending(self.data_dir, self._units, list(keeping), self._hurry)
        if self._restarting.is_set() and not failed:
            await end.ours()
            if not self._ending.is_set():
                self._replace()
        leave = failed and not self._ready
        await end.everything(
            leave_door=leave and self._found_door, leave_engines=leave and self._found_engines
        )
        return int(failed)

    async def _until_something_happens(self, keeping: dict[asyncio.Task[None], Unit]) -> bool:
        """Return once we are to end or to restart, or, with True, once a child is given up."""
        events = [asyncio.create_task(event.wait()) for event in (self._ending, self._restarting)]
        try:
            await asyncio.wait([*events, *keeping], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for event in events:
                event.cancel()
        lines = [_one_line(task) for task in keeping if task.done()]
        for line in lines:
            say(f"Error: {line}")
            self._tell_waiting(error=line)
        return bool(lines)

    async def _announce(self) -> None:
        waiting = asyncio.create_task(self._say_what_is_waited_for())
        try:
            await asyncio.gather(*(unit.ready() for unit in self._units))
        finally:
            waiting.cancel()
        await self._renew_doors()
        await asyncio.to_thread(self._retire_gateways)
        self._ready = True
        self._publish()
        self._tell_waiting(ok=True, version=__version__)
        seconds = time.monotonic() - self._began
        if self._restarted:
            say(f"GPUStack {__version__} is ready again after {seconds:.1f} s.")
        elif self.settings["server_url"]:
            say(banner.worker_ready(self.settings, self._sockets["door"].getsockname()[:2], seconds))
        else:
            say(banner.server_ready(self.settings, self._url, self._tls_url(), seconds))

    async def _renew_doors(self) -> None:
        try:
            if self._restarted or self._door.outdated:
                await self._door.exchange()
            await self._door.tidy()
        except (GPUStackError, OSError, RuntimeError) as error:
            say(f"the door could not be exchanged, so the present one stays: {error}")

    def _retire_gateways(self) -> None:
        """Have those that ran before us take no more connections: ours accept on the same sockets."""
        ours = {unit.describe()["pid"] for unit in self._units if unit.name.startswith("gateway")}
        for record in doors.running_doors(self._run_dir.path, doors.GATEWAYS):
            if record.pid not in ours:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(record.pid, RETIRE)

    async def _say_what_is_waited_for(self) -> None:
        await asyncio.sleep(_PATIENCE)
        if server := self.settings["server_url"]:
            say(
                f"still waiting for {server} to take this worker in; the log is {self.log_dir / 'worker.log'}"
            )

    def _publish(self) -> None:
        identity = self._identity
        assert identity is not None
        self._run_dir.publish(
            {
                "pid": identity.pid,
                "started": identity.started,
                "url": self._url,
                "server_url": self.settings["server_url"],
                "version": __version__,
                "ready": self._ready,
                "data_dir": str(self.data_dir),
                "log_dir": str(self.log_dir),
                "bin_dir": str(self.settings["bin_dir"]),
                "pipx_path": self.settings["pipx_path"],
                "image": own_image(
                    override=self.settings["image_name_override"],
                    repository=self.settings["image_repo"],
                    version=__version__,
                    registry=self.settings["system_default_container_registry"],
                ),
                "ports": {name: sock.getsockname()[1] for name, sock in self._sockets.items()},
                "children": {unit.name: unit.describe() for unit in self._units if unit.describe()},
                "warnings": self._disks.warnings,
            }
        )

    # Restarting -----------------------------------------------------------------------------------------

    async def _take_orders(self) -> None:
        while not self._restarting.is_set():
            order, channel = await self._control.order()
            what = order.get("do")
            if what not in ("restart", "await", "reload"):
                answer(channel, error=f"{what!r} is no order that this GPUStack knows")
            elif self._restarted and not self._ready:
                self._waiting.append(channel)  # the restart that is under way is theirs too
            elif what == "await":
                answer(channel, ok=True, version=__version__)
            elif not self._ready:
                answer(channel, error="GPUStack is just starting; try again when it is ready")
            elif what == "reload":
                await self._reload_for(channel)
            else:
                async with self._changing:
                    await self._check_and_restart(channel)

    async def _check_and_restart(self, channel: Channel) -> None:
        """Make sure that the new program can run before anything of the present one is touched."""
        try:
            settings, warnings = await settings_now(self._flags, self.data_dir, self.settings["database_url"])
            opened, _ = sockets.open_new(sockets.wanted(settings), self._sockets)
        except (GPUStackError, OSError, RuntimeError, LookupError) as error:
            answer(channel, error=str(error), settings_are_wrong=isinstance(error, SettingsError))
            return
        for line in warnings:
            say(f"Warning: {line}")
        say("restarting; engines go on")
        self.settings = settings
        self._sockets |= opened
        self._waiting.append(channel)
        self._restarting.set()

    # Reloading ------------------------------------------------------------------------------------------

    async def _reload_for(self, channel: Channel) -> None:
        try:
            done, warnings, troubles = await self._reload()
        except (GPUStackError, OSError, RuntimeError) as error:
            answer(channel, error=str(error), settings_are_wrong=isinstance(error, SettingsError))
        else:
            answer(
                channel,
                ok=True,
                applied=done.applied,
                needs_restart=done.needs_restart,
                warnings=warnings,
                troubles=troubles,
            )

    async def _reload_when_asked(self) -> NoReturn:
        """Reload at each hang-up signal; what comes of it stands where our output goes."""
        while True:
            await self._reload_asked.wait()
            self._reload_asked.clear()
            try:
                done, warnings, troubles = await self._reload()
            except (GPUStackError, OSError, RuntimeError) as error:
                for line in str(error).splitlines():
                    say(f"Error: {line}")
                say("the settings stay as they were")
                continue
            for line in warnings:
                say(f"Warning: {line}")
            for line in troubles:
                say(f"Error: {line}")
            say(banner.reloaded(done.applied, done.needs_restart))

    async def _reload(self) -> tuple[Change, list[str], list[str]]:
        """Read the settings again and apply what can be; return that with warnings, and who has not confirmed it.

        Raises GPUStackError, with nothing applied, for wrong ones.
        """
        async with self._changing:
            new, warnings = await settings_now(self._flags, self.data_dir, self.settings["database_url"])
            done = change(self._as_read, new)
            self._as_read = done.settings
            self.settings |= {name: done.settings[name] for name in (*done.applied, "effective")}
            # Also without a change: the files of a certificate may be others.
            troubles = [await unit.reload() for unit in self._units if isinstance(unit, PythonChild)]
            troubles.append(await self._door.use_debug(self.settings["debug"]))
        return done, warnings, [line for line in troubles if line]

    def _replace(self) -> NoReturn:
        inherited = Inherited(
            sockets=self._sockets,
            lock=self._run_dir.hand_down(),
            waiting=[channel.fileno() for channel in self._waiting],
        )
        spare_proxies(os.environ, urlsplit(self.settings["server_url"]).hostname)
        replace(self.settings, self._flags, inherited)

    def _tell_waiting(self, **content: Any) -> None:
        for channel in self._waiting:
            answer(channel, **content)
        self._waiting.clear()


def hang_up_ends() -> bool:
    """Tell whether a hang-up signal means that our terminal is gone: not without one, and not below ``nohup``."""
    return sys.platform != "win32" and has_terminal() and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN


def _one_line(task: asyncio.Task[None]) -> str:
    error = task.exception() if not task.cancelled() else None
    if isinstance(error, GPUStackError):
        return error.message
    return f"{task.get_name()} ended unexpectedly ({type(error).__name__}: {error})"


def main() -> int:
    """Run the supervisor with what the given descriptor holds."""
    with os.fdopen(int(sys.argv[1]), encoding="utf-8") as pipe:
        given = json.load(pipe)
    inherited = None if given["inherited"] is None else Inherited.of(given["inherited"])
    # The database's own user has to pass through our folders, whatever root's mask; secrets have modes of their own.
    os.umask(0o022)
    allow_open_files()
    # A reader that went away (a closed terminal, `| head`) is no reason to end.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    try:
        return asyncio.run(Supervisor(given["settings"], given["flags"], inherited).run())
    except GPUStackError as error:
        say(f"Error: {error.message}")
        return 1
    except OSError as error:
        say(f"Error: {system_line(error)}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
