"""Whether it is the engine that listens on its port: requests must not go to whoever took the port before it."""

from __future__ import annotations

import contextlib

import psutil

from gpustack.kit.net import program_name
from gpustack.kit.process import tree
from gpustack.worker.runners.engine import Engine
from gpustack.worker.runners.records import CONTAINER, is_stranger


def intruder(engine: Engine) -> str:
    """Return who listens on the engine's port in its place, as in ``python3 (process 4711)``; "" for nobody. Blocks.

    Nobody, too, where it cannot be told: the processes of a container may be out of sight.
    """
    port = engine.record.port
    if engine.record.runner == CONTAINER or any(_listens(process, port) for process in tree(engine.pid)):
        return ""
    try:
        found = psutil.net_connections("tcp")
    except psutil.Error:  # macOS tells it to root only
        return ""
    listeners = {
        each.pid
        for each in found
        if each.status == psutil.CONN_LISTEN and each.laddr and each.laddr.port == port
    }
    # What the engine started and sent into a session of its own still has its environment.
    if not listeners or any(each and not is_stranger(each, engine.record.instance_id) for each in listeners):
        return ""
    return program_name(next(iter(listeners)))


def _listens(process: psutil.Process, port: int) -> bool:
    with contextlib.suppress(psutil.Error, OSError):
        return any(
            each.status == psutil.CONN_LISTEN and each.laddr.port == port
            for each in process.net_connections("tcp")
        )
    return False
