"""Engines as real processes: started clean, watched, adopted, and ended with everything they started."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpustack.kit.errors import GPUStackError
from gpustack.kit.process import identify, moment, pid_space
from gpustack.plugin import LaunchPlan
from gpustack.worker.probe import answers
from gpustack.worker.runners.ending import end_recorded
from gpustack.worker.runners.process import EngineProcess
from gpustack.worker.runners.records import (
    EngineRecord,
    find_process,
    read_records,
    record_path,
    write_record,
)

Until = Callable[..., Awaitable[None]]
Alive = Callable[[int], bool]


def said(engine: EngineProcess, pattern: str) -> re.Match[str] | None:
    return re.search(pattern, engine.log_path.read_text())


async def test_it_answers_once_it_is_ready(place: Any, until: Until) -> None:
    engine = await place.start("slow")

    assert not await answers(engine.record.port, "/health", timeout=1)
    began = time.monotonic()
    while not await answers(engine.record.port, "/health", timeout=1):
        assert time.monotonic() - began < 10
    assert engine.running_for() > 0.9
    await engine.end(grace=2)


async def test_a_status_from_300_on_is_no_answer(place: Any, until: Until) -> None:
    engine = await place.start("never ready")
    await until(lambda: said(engine, "hello"))

    assert not await answers(engine.record.port, "/health", timeout=1)
    await engine.end(grace=2)


async def test_it_sees_a_clean_world(place: Any, until: Until, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUSTACK_TOKEN", "secret")
    monkeypatch.setenv("MY_SECRET", "secret")
    inherited = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(inherited, True)
    launch = place.launch("shows its world", env=({"MODEL_VAR": "plugin"}, {"MODEL_VAR": "user"}))

    engine = await EngineProcess.start(place.run_dir, launch)
    await until(lambda: said(engine, "SESSION"))

    os.close(inherited)
    text = engine.log_path.read_text()
    names = set(re.search(r"ENV (.*)", text)[1].split())  # type: ignore[index]
    assert "secret" not in text
    assert {name for name in names if name.startswith("GPUSTACK")} == {
        "GPUSTACK_INSTANCE_ID",
        "GPUSTACK_INSTANCE_RECORD",
    }
    assert "MY_SECRET" not in names
    assert {"PATH", "HOME"} & set(os.environ) <= names
    assert "VALUE user" in text
    # The three of its own, and the one that lists the folder.
    assert len(re.search(r"FDS (.*)", text)[1].split()) == 4  # type: ignore[index]
    assert f"CWD {launch.scratch}" in text
    assert "SESSION True" in text
    await engine.end(grace=2)


async def test_a_crash_is_described_with_its_last_lines(place: Any) -> None:
    engine = await place.start("crashes at once")

    description = await engine.wait()

    assert re.fullmatch(r"exited with status 3 after \d\.\d s", description)
    assert engine.tail() == "engine crashes at once says hello\ncannot load the model"


async def test_a_kill_is_described_with_its_usual_cause(place: Any) -> None:
    engine = await place.start("killed")

    assert "was killed by signal 9 (SIGKILL)" in (description := await engine.wait())
    assert "out-of-memory killer" in description


async def test_the_log_of_the_start_before_is_kept(place: Any) -> None:
    for behaviour in ("killed", "crashes at once"):
        launch = place.launch(behaviour)
        engine = await EngineProcess.start(place.run_dir, launch)
        await engine.wait()
        await engine.end(grace=0)
        launch.lease.free()

    assert "engine crashes" in engine.log_path.read_text()
    assert "engine killed" in engine.log_path.with_name("engine.log.previous").read_text()


async def test_one_that_ignores_the_polite_signal_ends_all_the_same(
    place: Any, until: Until, alive: Alive
) -> None:
    engine = await place.start("ignores SIGTERM")
    await until(lambda: said(engine, "hello"))
    while not await answers(engine.record.port, "/health", timeout=1):
        pass

    began = time.monotonic()
    await engine.end(grace=0.5)

    assert 0.5 <= time.monotonic() - began < 3
    assert not alive(engine.who.pid)
    assert not place.records()


@pytest.mark.parametrize("behaviour", ["has a grandchild", "has a runaway"])
@pytest.mark.parametrize("leader", ["lives", "has died"])
async def test_what_it_started_ends_too(
    place: Any, until: Until, alive: Alive, behaviour: str, leader: str
) -> None:
    engine = await place.start(behaviour)
    await until(lambda: said(engine, r"grandchild (\d+)"))
    grandchild = int(said(engine, r"grandchild (\d+)")[1])  # type: ignore[index]
    assert alive(grandchild)
    if leader == "has died":
        os.kill(engine.who.pid, signal.SIGKILL)
        await engine.wait()

    await engine.end(grace=2)

    assert not alive(engine.who.pid)
    assert not alive(grandchild)


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        (LaunchPlan(argv=("/no/such/engine",)), "/no/such/engine cannot be started: No such file"),
        (LaunchPlan(argv=("/etc/passwd",)), "/etc/passwd cannot be started: Permission denied"),
        (LaunchPlan(argv=("true",), cwd="/no/such/place"), "/no/such/place"),
        (LaunchPlan(argv=("true", "a\0b")), "cannot be started"),
    ],
)
async def test_one_that_cannot_be_started_says_why(place: Any, plan: LaunchPlan, says: str) -> None:
    with pytest.raises(GPUStackError, match=says) as caught:
        await EngineProcess.start(place.run_dir, replace(place.launch("slow"), plan=plan))

    assert "\n" not in caught.value.message
    assert not place.records()


class TestAdoption:
    """A worker that died leaves an engine; the next one takes it over."""

    def orphan(self, place: Any, behaviour: str) -> None:
        """Start an engine from a worker that dies right after."""
        root, tests = str(Path(__file__).parent), str(Path(__file__).parents[2])
        code = (
            "import asyncio, os, sys; from pathlib import Path\n"
            f"sys.path[:0] = [{root!r}, {tests!r}]; from conftest import Place\n"
            f"place = Place(Path({str(place.root)!r}))\n"
            f"asyncio.run(place.start({behaviour!r})); os._exit(9)\n"
        )
        assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 9

    async def test_it_is_found_watched_and_ended(self, place: Any, until: Until, alive: Alive) -> None:
        self.orphan(place, "slow")
        [record] = read_records(place.run_dir)

        engine = await EngineProcess.adopt(place.run_dir, record)

        assert engine is not None
        assert (engine.who.pid, alive(engine.who.pid)) == (record.pid, True)
        await engine.end(grace=2)
        assert "how is not known" in await engine.wait()
        assert not alive(record.pid)
        assert not place.records()

    async def test_its_end_is_noticed(self, place: Any) -> None:
        self.orphan(place, "slow")
        engine = await EngineProcess.adopt(place.run_dir, read_records(place.run_dir)[0])
        assert engine is not None

        os.kill(engine.who.pid, signal.SIGKILL)

        assert (await engine.wait()).startswith("ended after")

    async def test_it_is_found_by_its_marker_when_the_record_was_not_completed(self, place: Any) -> None:
        engine = await place.start("has a grandchild")
        write_record(place.run_dir, replace(engine.record, pid=0, started=0.0))

        adopted = await EngineProcess.adopt(place.run_dir, read_records(place.run_dir)[0])

        assert adopted is not None
        assert adopted.who == engine.who
        assert read_records(place.run_dir)[0].pid == engine.who.pid
        await adopted.end(grace=2)
        await engine.wait()

    async def test_a_number_used_again_is_a_stranger(self, place: Any, alive: Alive) -> None:
        stranger = subprocess.Popen(["sleep", "60"], start_new_session=True)
        try:
            engine = await place.start("crashes at once")
            await engine.wait()
            record = replace(engine.record, pid=stranger.pid, started=moment() - 1000)
            write_record(place.run_dir, record)

            assert find_process(place.run_dir, record) is None
            assert end_recorded(place.run_dir, grace=1) == 1
            assert stranger.poll() is None
        finally:
            stranger.kill()
            stranger.wait()


class TestSessionsWithoutLeader:
    """A daemon that forked twice lives in a session whose leader is gone, as engines' children may."""

    @pytest.fixture
    def daemon(self) -> Iterator[tuple[int, int]]:
        """Start one; return the session's number and the daemon's."""
        # Its environment tells nothing, as after a program has overwritten it to show a title.
        shell = subprocess.Popen(
            ["/bin/sh", "-c", "/bin/sleep 60 >/dev/null & echo $!"],
            start_new_session=True,
            stdout=subprocess.PIPE,
            env={},
        )
        said, _ = shell.communicate(timeout=20)
        number = int(said)
        assert os.getsid(number) == shell.pid
        yield shell.pid, number
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)

    def recorded(self, place: Any, session: int, **fields: Any) -> None:
        record = EngineRecord(
            instance_id=1, instance_name="i1", port=1, log_path="", argv_digest="", pid=session, **fields
        )
        write_record(place.run_dir, record)

    @pytest.mark.parametrize("space", ["", "another boot/4026531836/1"])
    def test_of_another_boot_it_is_a_stranger(
        self, place: Any, alive: Alive, daemon: tuple[int, int], space: str
    ) -> None:
        self.recorded(place, daemon[0], started=moment() - 60, pid_space=space)

        assert end_recorded(place.run_dir, grace=0.2) == 1

        assert alive(daemon[1])

    def test_older_than_the_engine_it_is_a_stranger(
        self, place: Any, alive: Alive, daemon: tuple[int, int]
    ) -> None:
        self.recorded(place, daemon[0], started=moment() + 60, pid_space=pid_space())

        assert end_recorded(place.run_dir, grace=0.2) == 1

        assert alive(daemon[1])

    def test_of_this_boot_and_younger_it_is_the_engines(
        self, place: Any, alive: Alive, daemon: tuple[int, int]
    ) -> None:
        self.recorded(place, daemon[0], started=moment() - 60, pid_space=pid_space())

        assert end_recorded(place.run_dir, grace=1) == 1

        assert not alive(daemon[1])


class TestEndingAll:
    async def test_all_end_at_once(self, place: Any, until: Until, alive: Alive) -> None:
        engines = [await place.start("ignores SIGTERM", number=number) for number in (1, 2, 3)]
        for engine in engines:
            while not await answers(engine.record.port, "/health", timeout=1):
                pass

        began = time.monotonic()
        assert end_recorded(place.run_dir, grace=0.5) == 3

        assert time.monotonic() - began < 3
        assert not any(identify(engine.who.pid) for engine in engines)
        assert not place.records()
        for engine in engines:
            await engine.wait()

    async def test_a_damaged_record_does_not_hide_an_engine(self, place: Any, alive: Alive) -> None:
        engine = await place.start("slow")
        record_path(place.run_dir, 1).write_text('{"half')

        assert end_recorded(place.run_dir, grace=1) == 1
        assert not alive(engine.who.pid)
        await engine.wait()

    def test_nothing_recorded_is_nothing_to_do(self, place: Any) -> None:
        assert end_recorded(place.run_dir) == 0

    def test_it_is_light_to_import(self) -> None:
        code = (
            "import sys, gpustack.worker.runners.ending\n"
            "heavy = {'pydantic', 'httpx', 'uvicorn', 'pluggy'} & set(sys.modules); assert not heavy, heavy"
        )
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
