"""A plugin of pytest: writes a line of JSON about each test into the file that a variable names."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

#: The variable with the file's path.
REPORT = "GPUSTACK_CHECK_REPORT"


def pytest_collectreport(report: Any) -> None:
    """Tell what could not even be read."""
    if report.failed:
        _tell("", "the contract can be run", why=_first_line(report))


def pytest_runtest_logreport(report: Any) -> None:
    """Tell how a test ended; one that was skipped promises nothing here."""
    if report.failed or (report.when == "call" and report.passed):
        _, test, *_, name = report.nodeid.split("::")
        promise = name.removeprefix("test_").replace("_", " ")
        if report.when != "call":
            promise = f"{promise} ({report.when})"
        _tell(test, promise, why=_first_line(report) if report.failed else None)


def _first_line(report: Any) -> str:
    """Return the first line of an error in pytest's words, without the type of a plain assertion."""
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None:
        line = str(crash.message)
    else:
        lines = [each for each in str(report.longrepr).splitlines() if each.startswith("E ")]
        line = (lines or str(report.longrepr).strip().splitlines() or ["no reason given"])[-1]
    return re.sub(r"^(E\s+)?(AssertionError: |Failed: )?", "", line.strip().splitlines()[0])


def _tell(test: str, promise: str, *, why: str | None) -> None:
    line = json.dumps({"test": test, "promise": promise, "ok": why is None, "why": why or ""})
    with Path(os.environ[REPORT]).open("a", encoding="utf-8") as file:
        file.write(line + "\n")
