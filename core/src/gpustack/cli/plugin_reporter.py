"""A plugin of pytest: writes what happens into the file that a variable names, a line of JSON for each event.

``unreadable`` is for tests that cannot be read, ``begins`` has what is tried now, ``result`` how it ended, ``collected``
how many tests there are, ``done`` that one of them is over, ``stopped`` why pytest was told to stop, ``ends`` its exit status. What is missing at the end never came.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from gpustack.kit.process import end_with_parent

#: The variable with the file's path.
REPORT = "GPUSTACK_CHECK_REPORT"
#: What people call the extension that a test class is about.
LABELS: dict[str, str] = {}


def pytest_configure() -> None:
    """Do not outlive whoever waits for this, least of all with a plugin that hangs."""
    end_with_parent()


def pytest_collectreport(report: Any) -> None:
    """Tell what could not even be read."""
    if report.failed:
        tell("unreadable", None)
        tell_result("the suite", "the contract can be run", why=_first_line(report))


def pytest_collection_finish(session: Any) -> None:
    """Tell how many tests there are."""
    tell("collected", len(session.items))


def pytest_runtest_logstart(nodeid: str) -> None:
    """Tell that a test begins."""
    tell("begins", _named(nodeid))


def pytest_runtest_logreport(report: Any) -> None:
    """Tell how a test ended; one that was skipped promises nothing here."""
    if report.failed or (report.when == "call" and report.passed):
        extension, promise = _named(report.nodeid)
        if report.when != "call":
            promise = f"{promise} ({report.when})"
        tell_result(extension, promise, why=_first_line(report) if report.failed else None)


def pytest_runtest_logfinish() -> None:
    """Tell that a test is over."""
    tell("done", None)


def pytest_keyboard_interrupt(excinfo: Any) -> None:
    """Tell what stopped pytest before its end."""
    tell("stopped", excinfo.exconly().splitlines()[0])


def pytest_sessionfinish(exitstatus: int) -> None:
    """Tell that this is the end."""
    tell("ends", int(exitstatus))


def tell(event: str, what: Any) -> None:
    """Write one event down."""
    with Path(os.environ[REPORT]).open("a", encoding="utf-8") as file:
        file.write(json.dumps({event: what}) + "\n")


def tell_result(extension: str, promise: str, *, why: str | None) -> None:
    """Write down how it ended; ``why`` is None when it holds."""
    tell("result", {"extension": extension, "promise": promise, "ok": why is None, "why": why or ""})


def _named(nodeid: str) -> tuple[str, str]:
    _, test, *_, name = nodeid.split("::")
    return LABELS.get(test, "the suite"), name.removeprefix("test_").replace("_", " ")


def _first_line(report: Any) -> str:
    """Return the first line of an error in pytest's words, without the type of a plain assertion."""
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None:
        line = str(crash.message)
    else:
        lines = [each for each in str(report.longrepr).splitlines() if each.startswith("E ")]
        line = (lines or str(report.longrepr).strip().splitlines() or ["no reason given"])[-1]
    first = next(iter(line.strip().splitlines()), "no reason given")
    return re.sub(r"^(E\s+)?(AssertionError: |Failed: )?", "", first)
