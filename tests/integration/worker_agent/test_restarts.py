"""What a worker knows of failed starts outlives it, and an instance never gets a second engine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from gpustack.kit.errors import GPUStackError
from gpustack.kit.process import identify, moment, pid_space
from gpustack.lifecycle.engine import EngineLimits
from gpustack.worker.memory import Memory, recall, remember
from gpustack.worker.runners.records import EngineRecord, memories_dir, read_records, write_record
from support.running import alive

RUNNING = "running"
SLOW = EngineLimits(start=8, probe_running=0.1, missed_probes=3, backoff=30)


def starts(server: Any) -> int:
    """How often an engine was started, which reports that come in quick succession do not hide."""
    return sum("pid" in report for *_, report in server.reports)


class TestBackOff:
    async def waiting(self, fleet: Any, server: Any, until: Any) -> None:
        """Return when the second start has failed and the third is 30 s away."""
        await fleet.start(limits=SLOW, keep_engines=True)
        server.want(1, fleet.a_model("crashes at once"))
        await until(lambda: "trying again in 30 s" in server.last(1).get("state_message", ""))

    async def test_the_next_worker_goes_on_waiting(self, fleet: Any, server: Any, until: Any) -> None:
        await self.waiting(fleet, server, until)
        await fleet.stop()
        server.reports.clear()

        await fleet.start(limits=SLOW, keep_engines=True)
        await asyncio.sleep(2)

        assert set(server.states(1)) == {"error"}
        assert "trying again in 30 s" in server.last(1)["state_message"]
        assert recall(fleet.config.run_dir, 1).failures == 2

    async def test_it_starts_when_the_time_has_come_and_counts_on(
        self, fleet: Any, server: Any, until: Any
    ) -> None:
        await self.waiting(fleet, server, until)
        await fleet.stop()
        server.reports.clear()
        memory = recall(fleet.config.run_dir, 1)
        remember(fleet.config.run_dir, 1, replace(memory, next_start=moment() + 1))

        await fleet.start(limits=SLOW, keep_engines=True)
        await until(lambda: "trying again in 60 s" in server.last(1).get("state_message", ""))

        assert sum(report.get("restarted", False) for *_, report in server.reports) == 1

    async def test_a_clock_that_jumped_makes_nobody_wait_for_hours(
        self, fleet: Any, server: Any, until: Any
    ) -> None:
        await self.waiting(fleet, server, until)
        memory = recall(fleet.config.run_dir, 1)

        far = replace(memory, next_start=moment() + 1e6)

        assert far.left() == 30.0
        assert replace(memory, next_start=0.0).left() == 0.0

    async def test_a_changed_model_is_tried_at_once(self, fleet: Any, server: Any, until: Any) -> None:
        await self.waiting(fleet, server, until)
        await fleet.stop()
        server.want(1, fleet.a_model("fine"), spec_digest="another")

        await fleet.start(limits=SLOW)

        await until(lambda: server.last(1)["state"] == RUNNING)

    async def test_everything_stopped_and_started_anew_waits_for_nothing(
        self, fleet: Any, server: Any, until: Any
    ) -> None:
        await self.waiting(fleet, server, until)
        await fleet.stop()
        await fleet.start(limits=SLOW)  # ends as `gpustack stop` does
        await fleet.stop()
        server.reports.clear()

        assert recall(fleet.config.run_dir, 1) == Memory()

    @pytest.mark.parametrize("damage", ["", "{", "[]", '{"failures": "many"}', '{"wait": null}', "\0" * 40])
    async def test_what_cannot_be_read_counts_as_nothing(self, fleet: Any, damage: str) -> None:
        folder = memories_dir(fleet.config.run_dir)
        folder.mkdir(parents=True)
        (folder / "1.json").write_text(damage)

        assert recall(fleet.config.run_dir, 1) == Memory()

    async def test_of_instances_that_are_gone_nothing_stays(
        self, fleet: Any, server: Any, until: Any
    ) -> None:
        await self.waiting(fleet, server, until)
        await fleet.stop()
        server.things["model-instances"].clear()

        await fleet.start(limits=SLOW, keep_engines=True)

        assert not list(memories_dir(fleet.config.run_dir).glob("*"))

    async def test_an_engine_that_died_with_its_worker_counts_as_a_restart(
        self, fleet: Any, server: Any, until: Any
    ) -> None:
        await fleet.start(keep_engines=True)
        server.want(1, fleet.a_model())
        await until(lambda: server.last(1)["state"] == RUNNING)
        pid = server.last(1)["pid"]
        await fleet.stop()
        psutil.Process(pid).kill()
        server.reports.clear()

        await fleet.start()
        await until(lambda: server.last(1)["state"] == RUNNING and server.last(1)["pid"] != pid)

        assert sum(report.get("restarted", False) for *_, report in server.reports) == 1

    async def test_without_restarts_it_stays_down_also_then(
        self, fleet: Any, server: Any, until: Any
    ) -> None:
        await fleet.start(keep_engines=True)
        server.want(1, fleet.a_model(restart_on_error=False))
        await until(lambda: server.last(1)["state"] == RUNNING)
        pid = server.last(1)["pid"]
        await fleet.stop()
        psutil.Process(pid).kill()

        await fleet.start()
        await until(lambda: server.last(1)["state"] == "error")

        assert "ended while no worker watched it" in server.last(1)["state_message"]

    @pytest.mark.slow
    async def test_a_long_time_of_loading_forgives_nothing(self, fleet: Any, server: Any, until: Any) -> None:
        """``slow`` loads for a second, and dies half a second after it answers."""
        limits = EngineLimits(start=8, probe_running=0.1, backoff=0.2, stable=1.0)
        await fleet.start(limits=limits)
        server.want(1, fleet.a_model("slow and crashes later"))

        await until(lambda: "trying again in 1 s" in str(server.reports), seconds=30)


class TestOneEngine:
    async def test_a_stranger_with_the_recorded_number_and_time_is_left_alone(
        self, fleet: Any, server: Any, until: Any
    ) -> None:
        with subprocess.Popen(["sleep", "60"], start_new_session=True) as stranger:
            try:
                who = identify(stranger.pid)
                assert who is not None
                record = EngineRecord(
                    instance_id=1,
                    instance_name="m-1",
                    port=fleet.config.service_ports[0],
                    log_path="",
                    argv_digest="",
                    pid=who.pid,
                    started=who.started,
                    pid_space=pid_space(),
                )
                write_record(fleet.config.run_dir, record)
                server.want(1, fleet.a_model(), state="running", pid=who.pid)

                await fleet.start()
                await until(lambda: server.last(1)["state"] == RUNNING)

                assert server.last(1)["pid"] != stranger.pid
                server.drop("model-instances", 1)
                await until(lambda: not read_records(fleet.config.run_dir))
                assert stranger.poll() is None
            finally:
                stranger.kill()

    async def test_an_earlier_worker_that_stands_still_is_ended_and_its_engine_adopted(
        self, fleet: Any, server: Any, until: Any
    ) -> None:
        """A worker process is stopped, its successor takes over, and going on it would do no more harm."""
        first = _worker_process(fleet)
        try:
            await until(lambda: server.registrations)
            server.want(1, fleet.a_model())
            await until(lambda: server.last(1)["state"] == RUNNING)
            pid = server.last(1)["pid"]
            os.kill(first.pid, signal.SIGSTOP)

            await fleet.start(keep_engines=True)
            with contextlib.suppress(ProcessLookupError):
                os.kill(first.pid, signal.SIGCONT)
            await asyncio.to_thread(first.wait, 10)
            server.reports.clear()
            psutil.Process(pid).kill()
            await until(lambda: server.last(1)["state"] == RUNNING and server.last(1)["pid"] != pid)

            assert first.returncode == -signal.SIGKILL
            assert len(_engines(fleet)) == 1
        finally:
            first.kill()
            first.wait()

    async def test_who_holds_the_directory_but_is_no_worker_is_named_not_killed(self, fleet: Any) -> None:
        folder = fleet.config.run_dir
        folder.mkdir()
        code = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print(flush=True); time.sleep(60)"
        holder = subprocess.Popen(
            [sys.executable, "-c", code, str(folder / "worker.lock")], stdout=subprocess.PIPE
        )
        assert holder.stdout is not None
        holder.stdout.readline()
        try:
            with pytest.raises(GPUStackError, match="lock is held by another program") as caught:
                await fleet.start()
            fleet.task = None
            assert "\n" not in caught.value.message
            assert holder.poll() is None
        finally:
            holder.kill()
            holder.communicate()

    @pytest.mark.parametrize("when", ["starting", pytest.param(RUNNING, marks=pytest.mark.slow)])
    async def test_kill_9_at_any_time_leaves_one_engine(
        self, fleet: Any, server: Any, until: Any, when: str
    ) -> None:
        server.want(1, fleet.a_model("slow"))
        pids = set()
        for _ in range(3):
            worker = _worker_process(fleet)
            try:
                # The second one adopts it.
                await until(lambda: server.last(1)["state"] in (when, RUNNING))
                pids.add(server.last(1).get("pid"))
            finally:
                worker.kill()
                worker.wait()
            server.reports.clear()
            began = time.monotonic()
        worker = _worker_process(fleet)
        try:
            await until(lambda: server.last(1)["state"] == RUNNING)
            assert time.monotonic() - began < 10
            assert len(_engines(fleet)) == 1
            assert not any(report.get("restarted") for *_, report in server.reports)
        finally:
            worker.kill()
            worker.wait()

    @pytest.mark.slow
    @pytest.mark.timeout(400)
    async def test_kill_9_at_each_of_its_requests_leaves_one_engine(
        self, fleet: Any, server: Any, until: Any
    ) -> None:
        """While it joins, watches, installs, starts, and says that it runs: before the server has answered."""
        number, died = 0, True
        while died:
            number += 1
            left = number
            worker = _worker_process(fleet)
            server.reports.clear()
            server.want(number, fleet.a_model("slow"))

            def at_request() -> None:
                nonlocal left
                left -= 1
                if left == 0:
                    worker.kill()  # noqa: B023  # called in this round alone

            server.on_request = at_request
            try:
                await until(lambda: worker.poll() is not None or server.last(number)["state"] == RUNNING)  # noqa: B023
                died = worker.poll() is not None
            finally:
                server.on_request = lambda: None
                worker.kill()
                worker.wait()
            worker = _worker_process(fleet)
            try:
                server.reports.clear()
                await until(lambda: server.last(number)["state"] == RUNNING)  # noqa: B023
                assert len(_engines(fleet)) == 1
                assert not any(report.get("restarted") for *_, report in server.reports)
                assert len({each["worker_uuid"] for each in server.registrations}) == 1
                server.drop("model-instances", number)
                await until(lambda: not _engines(fleet))
            finally:
                worker.kill()
                worker.wait()
        assert number > 6, "it was killed at all steps"

    async def test_kill_9_while_it_drains_cuts_no_client_off(
        self, fleet: Any, server: Any, until: Any
    ) -> None:
        server.want(1, fleet.a_model())
        worker = _worker_process(fleet)
        try:
            await until(lambda: server.last(1)["state"] == RUNNING)
            report = server.last(1)
            with socket.create_connection(("127.0.0.1", report["port"])):
                row = server.things["model-instances"][1]
                server.put(
                    "model-instances", row | {"draining_since": row["created_at"], "drain_seconds": 60}
                )
                await until(lambda: list(memories_dir(fleet.config.run_dir).glob("*")))
                worker.kill()
                worker.wait()
                server.registrations.clear()
                worker = _worker_process(fleet)
                await until(lambda: server.registrations)
                await asyncio.sleep(1.5)
                assert alive(report["pid"])
            await until(lambda: server.last(1).get("ended") is True)
            assert not _engines(fleet)
        finally:
            worker.kill()
            worker.wait()


def _engines(fleet: Any) -> list[int]:
    """Return the processes that run the fake engine for this data directory."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            mark = process.environ().get("GPUSTACK_INSTANCE_RECORD", "")
            if mark.startswith(str(fleet.config.run_dir)) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def _worker_process(fleet: Any) -> subprocess.Popen[bytes]:
    """Start a worker of ``fleet`` as a process of its own."""
    config = fleet.config
    given = {"url": config.server_url, "root": str(fleet.root), "ports": list(config.service_ports)}
    here, tests = str(Path(__file__).parent), str(Path(__file__).parents[2])
    code = (
        f"import sys; sys.path[:0] = [{here!r}, {tests!r}]\n"
        "import conftest, json\n"
        "conftest.work(json.loads(sys.argv[1]))\n"
    )
    log = (fleet.root / "worker.log").open("ab")
    with log:
        return subprocess.Popen(
            [sys.executable, "-c", code, json.dumps(given)], stdout=log, stderr=log, start_new_session=True
        )


class TestANumberOfAnotherInstance:
    """After the server's data were restored from a backup, an instance may bear the number of a later one."""

    async def running(self, fleet: Any, server: Any, until: Any) -> int:
        await fleet.start(keep_engines=True)
        server.want(1, fleet.a_model())
        await until(lambda: server.last(1)["state"] == RUNNING)
        return int(server.last(1)["pid"])

    async def test_its_engine_is_not_adopted(self, fleet: Any, server: Any, until: Any) -> None:
        pid = await self.running(fleet, server, until)
        await fleet.stop()
        server.things["model-instances"].clear()
        server.reports.clear()
        server.want(1, fleet.a_model(name="another"))

        await fleet.start()
        await until(lambda: server.last(1)["state"] == RUNNING)

        assert server.last(1)["pid"] != pid
        assert not alive(pid)
        assert [each.instance_name for each in read_records(fleet.config.run_dir)] == ["another-1"]
        assert not any(report.get("restarted") for *_, report in server.reports)

    async def test_its_engine_is_ended_while_the_worker_runs(
        self, fleet: Any, server: Any, until: Any
    ) -> None:
        pid = await self.running(fleet, server, until)
        server.want(1, fleet.a_model(name="another"))

        await until(lambda: server.last(1)["state"] == RUNNING and server.last(1)["pid"] != pid, seconds=30)

        assert not alive(pid)
        assert [each.instance_name for each in read_records(fleet.config.run_dir)] == ["another-1"]
