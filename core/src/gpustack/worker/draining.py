"""Waiting until the clients of an engine have left."""

from __future__ import annotations

import asyncio

from gpustack.kit.connections import loopback_clients

#: Seconds between two looks, only while an engine drains.
_LOOK = 0.2
#: Seconds in which a request may still be on its way: from the choice of the instance to the connection.
_ON_THE_WAY = 0.5
#: Looks in a row that find nobody: the system's table changes while it is read, and may leave one out.
_LOOKS = 3


async def until_idle(port: int, *, seconds: float) -> int:
    """Return once nobody is connected to ``port``, or ``seconds`` are over: how many clients there were then."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    deadline = began + seconds
    idle = 0
    while True:
        clients = await asyncio.to_thread(loopback_clients, port)
        idle = 0 if clients else idle + 1
        now = loop.time()
        if now >= deadline or (idle >= _LOOKS and now - began >= _ON_THE_WAY):
            return clients
        await asyncio.sleep(min(_LOOK, deadline - now))
