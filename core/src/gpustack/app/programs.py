"""Programs that a gateway's plugin has the supervisor run, such as a proxy that is installed on the machine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from gpustack.app.children import Child, open_log
from gpustack.kit.errors import GPUStackError
from gpustack.kit.paths import make_dir
from gpustack.kit.process import OWN_SESSION, describe_exit, end_tree_async
from gpustack.settings.gateway import GatewayProcess

#: Seconds after which a program that still runs has started well. Nobody knows how to ask it.
SETTLED = 1.0


class Program(Child):
    """One program of a gateway's, with all that it starts in turn. It ends with its supervisor."""

    def __init__(
        self,
        name: str,
        plan: GatewayProcess,
        *,
        place: Path,
        log_path: Path,
        say: Callable[[str], None],
        changed: Callable[[], None],
    ) -> None:
        """``place`` is where it works unless its plan says otherwise; made when it is needed."""
        super().__init__(name, log_path=log_path, say=say, changed=changed)
        self._plan = plan
        self._place = place

    async def _run_once(self) -> str:
        self._refusal = ""
        self._set("starting")
        try:
            process = await self._spawn()
        except (OSError, RuntimeError, GPUStackError) as error:
            self._refusal = f"{self.name} cannot be started: {error}"
            return f"cannot be started: {error}"
        self._process = process
        self._changed()
        settling = asyncio.create_task(self._settle())
        try:
            status = await process.wait()
        finally:
            settling.cancel()
        # What it has left behind would have its ports.
        await end_tree_async(process.pid, grace=1.0)
        return describe_exit(status)

    async def _settle(self) -> None:
        await asyncio.sleep(SETTLED)
        self._set("ready")
        self._ready.set()

    async def _spawn(self) -> asyncio.subprocess.Process:
        from gpustack.worker.environment import clean_environment

        env = clean_environment(()) | self._plan.env
        program = shutil.which(self._plan.argv[0], path=env.get("PATH"))
        if program is None:
            raise GPUStackError(f"there is no program {self._plan.argv[0]}")
        if self._plan.cwd is None:
            make_dir(self._place, what="working directory", mode=0o700)
        cwd = self._plan.cwd or str(self._place)
        # By way of a Python that becomes the program: only a process itself can ask to end with its parent.
        launcher = [sys.executable, "-P", "-m", "gpustack.app.launch", str(os.getpid()), program]
        with open_log(self._log_path) as log:
            return await asyncio.create_subprocess_exec(
                *launcher,
                *self._plan.argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=cwd,
                env=env,
                **OWN_SESSION,
            )

    async def stop(self, grace: float) -> None:
        """End the program and all that it has started: politely, and after ``grace`` seconds for good."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        await end_tree_async(process.pid, grace=grace)
        await process.wait()
        self._set("stopped")

    def kill(self) -> None:
        """End all of it at once."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            if sys.platform == "win32":
                process.kill()
            else:
                os.killpg(process.pid, signal.SIGKILL)
