"""Which versions of a server and its workers go together."""

from __future__ import annotations

import re

#: The first two numbers, as in ``1.2``, ``v1.2.3rc1`` or ``1.2.0.dev4+g1f3a``; an epoch (``1!``) is not used.
_NUMBERS = re.compile(r"\s*v?([0-9]{1,9})\.([0-9]{1,9})(?![0-9])", re.ASCII | re.IGNORECASE)


def fit(one: str, other: str) -> bool:
    """Tell whether a server and a worker of these versions work together.

    They do within one major version when their minor versions are at most one apart. A text without two numbers
    names a build of somebody's own, who is trusted to know what goes with it.
    """
    first, second = _numbers(one), _numbers(other)
    if first is None or second is None:
        return True
    return first[0] == second[0] and abs(first[1] - second[1]) <= 1


def misfit(server: str, worker: str) -> str:
    """Return the line that says why these two do not go together and what to do; empty when they do."""
    if fit(server, worker):
        return ""
    return (
        f"the server has GPUStack {server or '(unknown)'} and the worker {worker or '(unknown)'}, which are too far "
        "apart: install versions with the same first number, and second numbers at most one apart"
    )


def _numbers(version: str) -> tuple[int, int] | None:
    found = _NUMBERS.match(version)
    return (int(found[1]), int(found[2])) if found else None
