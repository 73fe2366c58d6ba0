"""The port on the loopback address: chosen once, kept for as long as it is free."""

from __future__ import annotations

import random
from collections.abc import Container
from pathlib import Path

from gpustack.kit.errors import GPUStackError
from gpustack.kit.net import hold_first
from gpustack.kit.paths import write_atomic

#: Below the ports that the system gives to outgoing connections: a client that keeps trying to reach a port of that
#: range may be connected to itself, and then hold the port for good.
USUAL = range(15432, 16432)


def choose(record: Path, *, avoid: Container[int] = ()) -> int:
    """Return the recorded port, or another free one when it is taken or in ``avoid``.

    Nothing holds the port until PostgreSQL listens on it, so it may still find it taken.
    """
    wanted = [] if (last := recorded(record)) is None else [last]
    # At random, so that several that start at once seldom want the same.
    wanted += random.sample(USUAL, len(USUAL))
    held = hold_first(port for port in wanted if port not in avoid)
    if held is None:
        raise GPUStackError(f"no port from {USUAL[0]} to {USUAL[-1]} is free for the embedded database")
    with held:
        return int(held.getsockname()[1])


def recorded(record: Path) -> int | None:
    """Return the port of the last start, or None when none is known."""
    try:
        port = int(record.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return port if 0 < port < 65536 else None


def remember(record: Path, port: int) -> None:
    """Record ``port`` for the next start."""
    if recorded(record) != port:
        write_atomic(record, f"{port}\n")
