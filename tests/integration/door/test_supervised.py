"""The supervisor's side of doors: exchanged, watched, started again, and none left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from gpustack.app import door_orders, door_unit, doors
from gpustack.app.door_unit import DoorUnit
from gpustack.kit.process import identify
from support.door import TOKEN, Doorway, a_door
from support.fake_engine import FakeEngine, says_ok, streams


async def until(true: Callable[[], Any], seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.02)


class House:
    """A door unit with a data directory and a listener of its own."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        for folder in ("run/instances", "worker"):
            (data_dir / folder).mkdir(parents=True, exist_ok=True)
        (data_dir / "worker" / "door_token").write_text(TOKEN + "\n")
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.said: list[str] = []
        self.unit = DoorUnit(
            data_dir,
            own=self.listener,
            kept={},
            found=None,
            debug=False,
            log_path=data_dir / "door.log",
            say=self.said.append,
            changed=lambda: None,
        )

    @property
    def pid(self) -> int:
        return int(self.unit.describe()["pid"] or 0)

    def client_of(self) -> Doorway:
        """Return what a test asks the doors with; they share a port."""
        return Doorway(self.data_dir, self.listener)


@contextlib.asynccontextmanager
async def a_house(data_dir: Path) -> AsyncIterator[House]:
    house = House(data_dir)
    running = asyncio.create_task(house.unit.run())
    try:
        ready = asyncio.create_task(house.unit.ready())
        await asyncio.wait([ready, running], timeout=60, return_when=asyncio.FIRST_COMPLETED)
        assert ready.done()
        yield house
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await house.unit.stop(2)
        house.listener.close()


async def test_after_an_exchange_the_new_door_is_watched_and_the_old_one_leaves_no_zombie(
    tmp_path: Path,
) -> None:
    async with a_house(tmp_path) as house, FakeEngine(says_ok) as engine:
        engine.script = streams(engine)
        door = house.client_of()
        door.engine_at(1, engine.port)
        async with (
            door.client() as client,
            client.stream("POST", "/instances/1/v1/x", json={}, headers=door.headers(1)) as answer,
        ):
            pieces = answer.aiter_text()
            await anext(pieces)
            old = house.pid
            await house.unit.exchange()
            new = house.pid
            assert new != old

            os.kill(new, signal.SIGKILL)
            await until(lambda: house.pid not in (old, new, 0))
            assert "SIGKILL" in house.said[0]

            engine.go_on.set()
            assert "[DONE]" in "".join([piece async for piece in pieces])
        await until(lambda: not psutil.pid_exists(old))
        assert house.unit.describe()["restarts"] == 1


async def test_what_a_dead_supervisor_had_just_begun_is_retired_once_it_is_found(tmp_path: Path) -> None:
    with a_door(tmp_path) as stray:
        async with a_house(tmp_path) as house:
            await house.unit.tidy()
            assert await asyncio.to_thread(stray.process.wait, 60) == 0
            assert [record.pid for record in doors.running_doors(tmp_path / "run")] == [house.pid]


async def test_a_door_that_never_gets_ready_is_ended_and_another_one_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, hung = door_unit.role_command, []

    def command(*given: Any, **named: Any) -> list[str]:
        if hung:
            monkeypatch.setattr(door_unit, "READY_WITHIN", 60)
            return real(*given, **named)
        hung.append(True)
        return ["sleep", "600"]

    monkeypatch.setattr(door_unit, "role_command", command)
    monkeypatch.setattr(door_unit, "READY_WITHIN", 0.3)
    async with a_house(tmp_path) as house:
        assert identify(house.pid) is not None


async def test_an_end_while_a_door_is_begun_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door_unit, "role_command", lambda *_, **__: ["sleep", "600"])
    house = House(tmp_path)
    running = asyncio.create_task(house.unit.run())
    await until(lambda: [each for each in psutil.Process().children() if each.name() == "sleep"])
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    house.listener.close()
    assert not [each for each in psutil.Process().children() if each.name() == "sleep"]


def test_children_of_the_program_before_are_known_and_their_ends_fetched() -> None:
    # Nobody but us may know them, so that nobody else fetches how they end.
    living = os.posix_spawn("/bin/sleep", ["sleep", "600"], os.environ)
    ended = os.posix_spawn("/bin/true", ["true"], os.environ)
    try:
        assert os.waitid(os.P_PID, ended, os.WEXITED | os.WNOWAIT) is not None
        known = [door.who.pid for door in door_orders.forked_before()]
        assert living in known
        assert ended not in known
        assert not psutil.pid_exists(ended)
    finally:
        os.kill(living, signal.SIGKILL)
        os.waitpid(living, 0)
