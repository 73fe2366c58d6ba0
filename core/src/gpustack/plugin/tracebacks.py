"""What the log of an engine written in Python says of its end."""

from __future__ import annotations

import re

#: What loggers put before a line: vLLM's processes, SGLang's ranks.
_BEFORE = re.compile(
    r"^(\((?P<process>[^()]*pid=\d+)\)\s)?"
    r"((ERROR|WARNING|INFO|CRITICAL) \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]*\]\s?|\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[^\]]*\]\s?)?"
)
_ERROR = re.compile(r"^([A-Za-z_][\w.]*(?:Error|Exception|Refused|Exit|Interrupt))(?:: ?(.*))?$")
#: Errors that only say that there was another one.
_HOLLOW = ("See root cause", "Engine core initialization failed", "failed to start", "WorkerProc")
_PYDANTIC = re.compile(r"^\s*(?:Value error, |Assertion failed, )(.*?)(?: \[type=.*)?$")
_LONGEST = 500


def root_cause(log: str) -> str:
    """Return the message of the last error in ``log`` that says something, in a line; empty when there is none.

    ``log`` are the last lines that an engine wrote, with tracebacks of several processes among others.
    """
    lines = [_BEFORE.sub("", line, count=1) for line in log.splitlines()]
    found = ""
    for number, line in enumerate(lines):
        if (error := _ERROR.match(line)) is None:
            continue
        name, said = error[1].rpartition(".")[2], (error[2] or "").strip()
        if any(each in said for each in _HOLLOW):
            continue
        if name == "ValidationError":
            said = next(
                (told[1] for each in lines[number + 1 : number + 8] if (told := _PYDANTIC.match(each))), said
            )
        if said or not found:
            found = said or name
    return " ".join(found.split())[:_LONGEST]
