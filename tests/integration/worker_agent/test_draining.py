"""An instance that drains ends once its clients have left, however often its worker comes and goes meanwhile."""

from __future__ import annotations

import asyncio
import socket
import time
from datetime import UTC, datetime
from typing import Any

import psutil

from gpustack.kit.connections import loopback_clients
from gpustack.worker.runners.records import memories_dir, read_records
from support.running import alive

RUNNING = "running"


def drain(server: Any, number: int = 1, seconds: int = 60) -> None:
    row = server.things["model-instances"][number]
    changes = {"draining_since": datetime.now(UTC).isoformat(), "drain_seconds": seconds}
    server.put("model-instances", row | changes)


def ended(server: Any, number: int = 1) -> bool:
    return server.last(number).get("ended") is True and number not in server.things["model-instances"]


async def a_running_one(fleet: Any, server: Any, until: Any, behaviour: str = "fine", **start: Any) -> Any:
    await fleet.start(**start)
    server.want(1, fleet.a_model(behaviour))
    await until(lambda: server.last(1)["state"] == RUNNING)
    return server.last(1)


def a_client(report: Any) -> socket.socket:
    return socket.create_connection(("127.0.0.1", report["port"]))


async def test_without_clients_it_ends_soon_and_leaves_nothing(fleet: Any, server: Any, until: Any) -> None:
    report = await a_running_one(fleet, server, until)
    began = time.monotonic()

    drain(server)
    await until(lambda: ended(server))

    assert time.monotonic() - began > 0.5, "a request may have been on its way"
    assert not alive(report["pid"])
    assert not read_records(fleet.config.run_dir)
    await until(lambda: not list(memories_dir(fleet.config.run_dir).glob("*")))
    await until(lambda: not (fleet.config.data_dir / "scratch" / "1").exists())


async def test_it_ends_when_its_last_client_has_left(fleet: Any, server: Any, until: Any) -> None:
    report = await a_running_one(fleet, server, until)
    with a_client(report):
        drain(server)
        await asyncio.sleep(2)
        assert alive(report["pid"])

    await until(lambda: ended(server))
    assert not alive(report["pid"])


async def test_a_client_that_never_leaves_is_cut_off_in_the_end(fleet: Any, server: Any, until: Any) -> None:
    report = await a_running_one(fleet, server, until)
    with a_client(report):
        drain(server, seconds=1)
        await until(lambda: ended(server))

    assert not alive(report["pid"])


async def test_it_does_not_come_back_when_it_dies(fleet: Any, server: Any, until: Any) -> None:
    report = await a_running_one(fleet, server, until)
    with a_client(report):
        drain(server)
        await asyncio.sleep(0.3)
        server.reports.clear()
        psutil.Process(report["pid"]).kill()
        await until(lambda: ended(server))

    assert len(server.reports) == 1


async def test_the_next_worker_goes_on_draining_and_counts_on(fleet: Any, server: Any, until: Any) -> None:
    report = await a_running_one(fleet, server, until, keep_engines=True)
    with a_client(report):
        drain(server, seconds=4)
        began = time.monotonic()
        await until(lambda: list(memories_dir(fleet.config.run_dir).glob("*")))
        await asyncio.sleep(1)
        await fleet.stop()
        assert alive(report["pid"])
        await asyncio.sleep(1)

        await fleet.start(keep_engines=True)
        assert alive(report["pid"])
        await until(lambda: ended(server))

    assert 3.5 < time.monotonic() - began < 5.9, "not 4 s more"


async def test_the_next_worker_waits_for_the_clients_too(fleet: Any, server: Any, until: Any) -> None:
    report = await a_running_one(fleet, server, until, keep_engines=True)
    with a_client(report):
        await fleet.stop()
        server.models.clear()
        drain(server)
        await fleet.start(keep_engines=True)
        await asyncio.sleep(1.5)
        assert alive(report["pid"])

    await until(lambda: ended(server))


async def test_its_model_may_be_gone_before_it_is_heard_of(fleet: Any, server: Any, until: Any) -> None:
    report = await a_running_one(fleet, server, until, keep_engines=True)
    with a_client(report):
        await fleet.stop()
        server.models.clear()
        await fleet.start(keep_engines=True)
        await asyncio.sleep(0.5)
        drain(server)
        await asyncio.sleep(1.5)
        assert alive(report["pid"])

    await until(lambda: ended(server))


async def test_one_that_does_not_run_ends_at_once(fleet: Any, server: Any, until: Any) -> None:
    await fleet.start()
    server.want(1, fleet.a_model("crashes at once"))
    await until(lambda: "error" in server.states(1))

    drain(server, seconds=3600)

    await until(lambda: ended(server))
    assert not read_records(fleet.config.run_dir)


async def test_one_that_is_placed_and_drained_while_the_worker_was_away_never_starts(
    fleet: Any, server: Any, until: Any
) -> None:
    server.want(1, fleet.a_model())
    drain(server)
    await fleet.start()

    await until(lambda: ended(server))
    assert "starting" not in server.states(1)


async def test_taken_away_meanwhile_it_ends_at_once(fleet: Any, server: Any, until: Any) -> None:
    report = await a_running_one(fleet, server, until)
    with a_client(report):
        drain(server, seconds=3600)
        await asyncio.sleep(0.7)
        server.drop("model-instances", 1)
        await until(lambda: not alive(report["pid"]))

    assert not server.last(1).get("ended")


async def test_its_end_reaches_a_server_that_was_away(fleet: Any, server: Any, until: Any) -> None:
    report = await a_running_one(fleet, server, until)
    drain(server)
    server.down = True
    await until(lambda: not alive(report["pid"]))
    server.down = False

    await until(lambda: ended(server))


def test_only_connections_to_that_port_are_counted() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.1", 0)) as other,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as six,
    ):
        port = one.getsockname()[1]
        assert loopback_clients(port) == 0
        with socket.create_connection(one.getsockname()), socket.create_connection(one.getsockname()):
            with socket.create_connection(other.getsockname()):
                assert loopback_clients(port) == 2, "accepted by nobody yet"
                assert loopback_clients(other.getsockname()[1]) == 1
            accepted, _ = one.accept()
            accepted.close()
        with socket.create_connection(six.getsockname()[:2]):
            assert loopback_clients(six.getsockname()[1]) == 1
        assert loopback_clients(port) == 0


class TestPlacedElsewhereWhileTheWorkerWasAway:
    async def test_it_serves_on_until_its_clients_have_left(
        self, fleet: Any, server: Any, until: Any
    ) -> None:
        report = await a_running_one(fleet, server, until)
        with a_client(report):
            del server.things["model-instances"][1]
            server.reports.clear()
            server.forget_workers()
            await until(lambda: len(server.registrations) == 2)
            await asyncio.sleep(1.5)
            assert alive(report["pid"])
        await until(lambda: not alive(report["pid"]))

        assert server.reports == [], "it is the other worker's to tell of"

    async def test_news_of_it_while_connected_are_the_same(self, fleet: Any, server: Any, until: Any) -> None:
        report = await a_running_one(fleet, server, until)
        with a_client(report):
            server.take_away(1, worker_id=2, worker_name="other", state="scheduled")
            await asyncio.sleep(1.5)
            assert alive(report["pid"])
        await until(lambda: not alive(report["pid"]))

    async def test_it_ends_at_once_when_the_instance_comes_back_here(
        self, fleet: Any, server: Any, until: Any
    ) -> None:
        report = await a_running_one(fleet, server, until)
        row = dict(server.things["model-instances"][1])
        with a_client(report):
            server.take_away(1, worker_id=None, state="pending")
            await asyncio.sleep(0.7)
            assert alive(report["pid"])
            server.put("model-instances", row | {"worker_id": 1, "state": "scheduled"})
            await until(lambda: not alive(report["pid"]))
            await until(lambda: server.last(1)["state"] == RUNNING and server.last(1)["pid"] != report["pid"])
