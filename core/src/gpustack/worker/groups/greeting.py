"""Before members of an instance start, each asks all others on all their ports: are you there, and are you like me?

A member answers on the ports that it holds for its engine, so what is reached is what the engine will be reached by.
One line of JSON goes each way. Whoever does not ask for the same start of the same instance learns nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gpustack.kit.errors import GPUStackError
from gpustack.kit.versions import fit
from gpustack.worker.ports import Lease

log = logging.getLogger(__name__)

#: Seconds within which another member has to answer; one more try after that.
_PATIENCE = 4.0
#: Seconds by which the clocks of two members may differ.
MOST_SKEW = 60.0
_LONGEST = 4096
#: What a member answers to one that is not of the same instance and attempt.
_STRANGER = {"stranger": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What a member says of itself."""

    instance: int
    attempt: int
    number: int
    worker: str
    engine: str
    version: str
    gpustack: str


@dataclass(frozen=True, slots=True)
class Peer:
    """Another member, as the server says where it is."""

    number: int
    worker: str
    host: str
    ports: tuple[int, ...]


class MembersApart(GPUStackError):
    """Two members cannot work together: the line names both, and what lies between them."""


@contextlib.asynccontextmanager
async def answering(card: Card, leases: Sequence[Lease]) -> AsyncIterator[None]:
    """Answer other members on the ports of ``leases``, which stay held afterwards."""

    talks: set[asyncio.Task[None] | None] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talks.add(task := asyncio.current_task())
        with contextlib.suppress(OSError, ValueError, RecursionError, TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                known = _is_of(card, json.loads(await reader.readline()))
                said = {**asdict(card), "clock": time.time()} if known else _STRANGER
                writer.write(json.dumps(said).encode() + b"\n")
                await writer.drain()
                # Who asks ends the connection first: whoever does so keeps its port for a minute, and ours is the engine's.
                await reader.read()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        talks.discard(task)

    async with contextlib.AsyncExitStack() as stack:
        for lease in leases:
            server = await asyncio.start_server(answer, sock=lease.listening(), limit=_LONGEST)
            await stack.enter_async_context(server)
        yield
        # A port with a connection left cannot be opened anew.
        if left := [each for each in talks if each is not None]:
            await asyncio.wait(left, timeout=_PATIENCE)


async def check(card: Card, peers: Sequence[Peer]) -> None:
    """Ask all ``peers`` on all their ports. Raises MembersApart with one line that names the first pair that fails."""
    pairs = [(peer, port) for peer in peers for port in peer.ports]
    found = await asyncio.gather(*(_trouble(card, peer, port) for peer, port in pairs))
    for line in found:
        if line:
            raise MembersApart(line)


async def _trouble(card: Card, peer: Peer, port: int) -> str:
    """Return what is wrong between us and a port of another member; empty for nothing."""
    why = ""
    for last in (False, True):
        try:
            before = time.time()
            said = await _ask(card, peer.host, port)
            return _differs(card, peer, port, said, (before + time.time()) / 2)
        except TimeoutError:
            why = f"no answer within {_PATIENCE:.0f} s"
        except OSError as error:
            why = (os.strerror(error.errno) if error.errno else str(error)).lower()
        except (ValueError, RecursionError):
            why = "something else answers there"
        if not last:
            await asyncio.sleep(0.5)
    return (
        f"worker {card.worker} cannot reach worker {peer.worker} at {peer.host}:{port} ({why}); open "
        "--distributed-worker-port-range between them, and see that --advertise-address is right"
    )


async def _ask(card: Card, host: str, port: int) -> dict[str, Any]:
    async with asyncio.timeout(_PATIENCE):
        reader, writer = await asyncio.open_connection(host, port, limit=_LONGEST)
        try:
            writer.write(json.dumps(asdict(card)).encode() + b"\n")
            await writer.drain()
            said = json.loads(await reader.readline())
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
    if not isinstance(said, dict) or (said != _STRANGER and not isinstance(said.get("clock"), int | float)):
        raise ValueError("no member")
    return said


def _is_of(card: Card, said: Any) -> bool:
    """Tell whether a card is of another member that starts in the same attempt."""
    return isinstance(said, dict) and (said.get("instance"), said.get("attempt")) == (
        card.instance,
        card.attempt,
    )


def _differs(card: Card, peer: Peer, port: int, said: dict[str, Any], now: float) -> str:
    between = f"worker {card.worker} and worker {peer.worker}"
    if not _is_of(card, said) or said.get("number") != peer.number:
        return (
            f"{between}: another instance, or another attempt to start it, answers at {peer.host}:{port}; is "
            f"{peer.host} the address of worker {peer.worker} alone?"
        )
    if not fit(theirs := str(said.get("gpustack")), card.gpustack):
        return f"{between} have GPUStack {card.gpustack} and {theirs}, which are too far apart; have both run the same version"
    if said.get("engine") != card.engine:
        return f"{between} have different engines, {card.engine} and {said.get('engine')}; start the instance again"
    if said.get("version") != card.version:
        return (
            f"{between} have different versions of {card.engine}: {card.version} and {said.get('version')}; "
            "give the model a backend version"
        )
    skew = said["clock"] - now
    if abs(skew) > MOST_SKEW:
        return f"the clocks of {between} differ by {abs(skew):.0f} s; have both set their time by NTP"
    return ""
