"""Runs the contract suites of :mod:`gpustack.testing` against what an installed plugin brings.

In a process of its own, where pytest and the plugin may do as they like. What happens there comes back through a file,
event by event (:mod:`gpustack.cli.plugin_reporter`), so that the one that never ended is known.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from gpustack.cli.plugin_reporter import REPORT
from gpustack.kit.errors import GPUStackError, NotFound
from gpustack.kit.process import describe_exit, end_tree
from gpustack.kit.text import shorten

#: Seconds that one promise may take, and after which it is named.
_PATIENCE, _QUIET = 120.0, 10.0
#: Seconds between two looks at the report.
_LOOK = 0.05
#: As pytest ends when all tests ran: they passed, some failed, there were none.
_COMPLETE = (0, 1, 5)
#: ``gpustack.testing`` stands above the command line, so it is named here and imported there only.
_TESTS = """\
from gpustack.cli.plugin_contracts import contracts
from gpustack.testing import SUITES, GatewayTrafficSuite

globals().update(contracts({plugin!r}, {database_url!r}, SUITES, GatewayTrafficSuite, always={traffic!r}))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One promise of one extension; ``why`` is the first line of why it does not hold."""

    extension: str
    promise: str
    ok: bool
    why: str = ""

    def document(self) -> dict[str, Any]:
        """Return it as ``--json`` prints it."""
        return asdict(self)


def examined(
    name: str, database_url: str, tell: Callable[[str], None], *, traffic: bool = False
) -> Iterator[Result]:
    """Yield what holds of the plugin ``name`` and what does not, each as soon as it is known.

    What a database promises is mostly held in the empty one at ``database_url``, when there is one. With ``traffic`` a
    gateway is run for requests also where it has programs of its own. ``tell`` gets a line about what takes long. A suite that does not reach its end has a last result, which fails.

    Raises NotFound when it is not installed, and GPUStackError when it cannot be examined.
    """
    plugin = _plugin(name)
    _refuse_without_pytest("the contract suites run")
    with tempfile.TemporaryDirectory(prefix="gpustack-check-") as folder:
        tests = Path(folder, "test_contract.py")
        # It may hold a password.
        tests.touch(mode=0o600)
        tests.write_text(_TESTS.format(plugin=plugin, database_url=database_url, traffic=traffic))
        Path(folder, "pytest.ini").write_text("[pytest]\n")
        yield from _Examination(Path(folder), tell).results()


def become_pytest(args: Sequence[str]) -> NoReturn:
    """Be pytest from here on, in this environment and folder. Raises GPUStackError when there is none."""
    _refuse_without_pytest("the tests of a plugin run")
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", "pytest", *args])


def _refuse_without_pytest(what: str) -> None:
    if importlib.util.find_spec("pytest") is None:
        from gpustack.cli.plugin_environment import how_to_get_pytest

        raise GPUStackError(
            f"{what} with pytest, which is not in GPUStack's environment; {how_to_get_pytest()}"
        )


def _plugin(name: str) -> str:
    """Return the plugin's name: it, or its distribution, may have been named. Nothing is loaded to know it."""
    from gpustack.cli.names import meant
    from gpustack.cli.plugin_environment import plugins_now
    from gpustack.cli.plugin_wanted import canonical
    from gpustack.settings.sources import blocked_plugins

    known = plugins_now()
    names = {plugin for plugin, _, _ in known if plugin == name} or {
        plugin for plugin, distribution, _ in known if canonical(distribution) == canonical(name)
    }
    if not names:
        near = meant(name, sorted({plugin for plugin, _, _ in known}))
        raise NotFound(f"no plugin {shorten(name, 160)!r} is installed here{near}; see `gpustack plugins`")
    if len(names) > 1:
        raise GPUStackError(f"{name} brings several plugins: {', '.join(sorted(names))}; name one of these")
    (found,) = names
    if found in blocked_plugins():
        raise GPUStackError(f"plugin {found} is not loaded: GPUSTACK_PLUGINS_BLOCK names it")
    return found


class _Examination:
    """A run of pytest in ``folder``, watched through its report."""

    def __init__(self, folder: Path, tell: Callable[[str], None]) -> None:
        self._folder = folder
        self._report = folder / "report.jsonl"
        self._said = folder / "said.txt"
        self._tell = tell
        #: What is tried at the moment, and since when; whether that was told.
        self._now = ("the suite", "it can be run")
        self._since = time.monotonic()
        self._told = False
        self._begun = False
        #: Tests that have not ended; None before they were counted.
        self._left: int | None = None
        self._stopped = ""
        self._ended: int | None = None
        #: Why there are no tests is in a result already.
        self._unreadable = False

    def results(self) -> Iterator[Result]:
        """Run it and yield what it finds. Raises GPUStackError when it did not even begin."""
        self._report.touch()
        with self._said.open("wb") as said:
            process = self._start(said)
            try:
                for event in self._events(process):
                    if (result := self._taken(event)) is not None:
                        yield result
                hanging = process.poll() is None
            finally:
                _end(process)
        if (last := self._last(process.returncode, hanging)) is not None:
            yield last

    def _start(self, output: Any) -> subprocess.Popen[bytes]:
        # -P: nothing in the working directory is taken for a module.
        command = [
            *(sys.executable, "-P", "-m", "pytest", "-q", "-p", "gpustack.cli.plugin_reporter"),
            *("-p", "no:cacheprovider", "--import-mode=importlib", "-c", str(self._folder / "pytest.ini")),
            *("--rootdir", str(self._folder), str(self._folder / "test_contract.py")),
        ]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        return subprocess.Popen(
            command,
            cwd=self._folder,
            env={**kept, REPORT: str(self._report), "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )

    def _events(self, process: subprocess.Popen[bytes]) -> Iterator[dict[str, Any]]:
        """Yield the events as they are written, until the process ends or one thing takes too long."""
        with self._report.open(encoding="utf-8") as file:
            rest = ""
            while True:
                ended = process.poll() is not None
                *lines, rest = (rest + file.read()).split("\n")
                yield from map(json.loads, lines)
                if ended or self._too_long():
                    return
                time.sleep(_LOOK)

    def _too_long(self) -> bool:
        passed = time.monotonic() - self._since
        if passed > _QUIET and not self._told:
            self._told = True
            self._tell(f"still at it after {passed:.0f} s: {': '.join(self._now)}")
        return passed > _PATIENCE

    def _taken(self, event: dict[str, Any]) -> Result | None:
        """Take in an event; returns the result that it is, if any."""
        ((kind, what),) = event.items()
        self._since, self._told = time.monotonic(), False
        match kind:
            case "result":
                return Result(**what)
            case "unreadable":
                self._unreadable = True
            case "begins":
                self._now, self._begun = (what[0], what[1]), True
            case "collected":
                self._left = what
            case "done":
                self._left = (self._left or 0) - 1
            case "stopped":
                self._stopped = what
            case "ends":
                self._ended = what
        return None

    def _last(self, status: int, hanging: bool) -> Result | None:
        """Return what fails when the run did not come to its end; None when it did."""
        from gpustack.cli.entry import debugging

        said = self._said.read_text(encoding="utf-8", errors="replace")
        if debugging():
            sys.stderr.write(said)
        if not (self._begun or self._unreadable or hanging):
            last = (said.strip().splitlines() or ["it said nothing"])[-1]
            raise GPUStackError(f"pytest ran no contract: {last}; GPUSTACK_DEBUG=1 shows more")
        if self._complete(status) or self._unreadable:
            return None
        if hanging:
            why = f"it was not done after {_PATIENCE:.0f} s; the rest was not tried"
        elif self._stopped:
            why = f"it stopped the run: {self._stopped}; the rest was not tried"
        else:
            why = f"the process {describe_exit(status)}; the rest was not tried"
        return Result(extension=self._now[0], promise=self._now[1], ok=False, why=why)

    def _complete(self, status: int) -> bool:
        return status == self._ended and status in _COMPLETE and self._left == 0


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a run that has not ended by itself, with all that it started."""
    if process.poll() is None:
        end_tree(process.pid, grace=0.5)
    process.wait()
