"""What gateways have to do reaches the server, and who waits for what is asleep is heard, whoever was away meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gpustack.dataplane.metering.journal import Journal
from gpustack.dataplane.table.copy import TableCopy
from gpustack.dataplane.table.link import Link
from gpustack.dataplane.table.load import LoadTeller
from gpustack.plugin.routing import RoutingTable, digest
from gpustack.server.gateways import Gateways
from gpustack.server.loads import Loads
from gpustack.server.reconcile.scaling import FleetLoad
from gpustack.testing.fakes.engine import Behaviour, FakeEngine
from support.gateway import CHAT, KEY, Running, a_gateway, a_route, a_target

SLOW = Behaviour(time_to_first_token=1.5)


@dataclass
class Server:
    """The server's side of the socket, with what it has heard."""

    loads: Loads = field(default_factory=lambda: Loads({"tiny": {11: 1.0}}.__getitem__))
    told: list[FleetLoad] = field(default_factory=list)
    woken: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.loads.told = self.told.append
        self.loads.woken = self.woken.extend


class Table:
    """Stands for the server's routing: the gateway's own table."""

    def __init__(self, running: Running) -> None:
        self._running = running
        self.table = RoutingTable(version=1)

    def listen(self, _callback: Any) -> Any:
        self.table = RoutingTable(
            version=2, routes=dict(self._running.routes), principals=dict(self._running.principals)
        )
        return lambda: None


async def soon(check: Any) -> None:
    async with asyncio.timeout(20):
        while not check():
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def a_linked_gateway(tmp_path: Path) -> AsyncIterator[Running]:
    """A gateway that looks for a server at ``tmp_path / "socket"`` all the time."""
    async with a_gateway(tmp_path) as running, Journal(tmp_path / "more", memory=tmp_path) as journal:
        gateway = running.gateway
        copy = TableCopy(gateway.apply)
        link = Link(
            tmp_path / "socket",
            copy,
            journal,
            release="1",
            first=lambda: None,
            load=LoadTeller(gateway.admission, gateway.chooser),
        )
        gateway.admission._wake = lambda route: link.wake(route.name)
        task = asyncio.create_task(link.run())
        try:
            yield running
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@contextlib.asynccontextmanager
async def a_server(tmp_path: Path, running: Running) -> AsyncIterator[Server]:
    server = Server()

    async def keep(_records: Any) -> None:
        return None

    async with Gateways(tmp_path / "socket", Table(running), keep, server.loads):  # type: ignore[arg-type]
        yield server


async def test_the_server_knows_what_runs_and_that_nothing_does(tmp_path: Path) -> None:
    async with a_linked_gateway(tmp_path) as running:
        with FakeEngine(SLOW) as engine:
            running.apply(a_route(a_target(4, engine)))
            async with a_server(tmp_path, running) as server:
                await soon(lambda: server.told and server.told[-1].known)
                assert server.told[-1].running == {}
                asking = [
                    asyncio.create_task(
                        running.client.post("/v1/chat/completions", json={**CHAT, "stream": True})
                    )
                    for _ in range(3)
                ]
                await soon(lambda: server.told[-1].running == {4: 3})
                assert any(11 in each.asked for each in server.told)
                assert {(await each).status_code for each in asking} == {200}
                await soon(lambda: server.told[-1].running == {})


async def test_a_short_request_between_two_looks_is_known_to_have_been_there(tmp_path: Path) -> None:
    async with a_linked_gateway(tmp_path) as running:
        with FakeEngine() as engine:
            running.apply(a_route(a_target(4, engine)))
            async with a_server(tmp_path, running) as server:
                await soon(lambda: server.told and server.told[-1].known)
                await running.client.post("/v1/chat/completions", json=CHAT)
                await soon(lambda: any(11 in each.asked for each in server.told))


async def test_a_server_that_comes_back_hears_who_waits_and_what_for(tmp_path: Path) -> None:
    async with a_linked_gateway(tmp_path) as running:
        with FakeEngine() as engine:
            route = replace(a_route(), asleep=True)
            running.apply(route)
            # Nobody is there to hear it.
            waiting = asyncio.create_task(running.client.post("/v1/chat/completions", json=CHAT))
            await soon(lambda: running.gateway.admission.held() == ["tiny"])
            async with a_server(tmp_path, running) as first:
                await soon(lambda: first.woken == [11])
                await soon(lambda: first.told[-1].waiting == {11: 1})
            async with a_server(tmp_path, running) as second:
                await soon(lambda: second.woken == [11])
                running.apply(replace(route, targets=(a_target(4, engine),)))
                answer = await waiting
                assert answer.status_code == 200
                assert float(answer.headers["x-queue-time"]) > 0
                await soon(lambda: second.told[-1].waiting == {})


async def test_who_is_gone_is_known_no_longer(tmp_path: Path) -> None:
    async with a_linked_gateway(tmp_path) as running:
        running.apply(replace(a_route(), asleep=True))
        waiting = asyncio.create_task(running.client.post("/v1/chat/completions", json=CHAT))
        async with a_server(tmp_path, running) as server:
            await soon(lambda: server.told and server.told[-1].waiting == {11: 1})
            waiting.cancel()
            await soon(lambda: server.told[-1].waiting == {})
            assert digest(KEY) in running.principals
