"""What an engine starts ends with it, however it hides; whom it does not concern goes on; and what it may do is bounded."""

import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpustack.kit.process import moment
from gpustack.plugin import LaunchPlan
from gpustack.worker.runners import cgroup
from gpustack.worker.runners.ending import end_recorded
from gpustack.worker.runners.process import EngineProcess
from gpustack.worker.runners.records import find_process, read_records, record_path, write_record

Until = Callable[..., Awaitable[None]]
Alive = Callable[[int], bool]

#: Forks twice, each time with a session of its own, and starts anew with nothing of the environment. Not in its first
#: moments: an engine is put into its group right after its start.
HIDES = (
    "import os, sys, time\n"
    "time.sleep(0.5)\n"
    "if os.fork(): time.sleep(3600)\n"
    "os.setsid()\n"
    "if os.fork(): os._exit(0)\n"
    "os.setsid()\n"
    "os.execve('/bin/sh', ['sh', '-c', 'echo hidden $$; exec sleep 3600'], {})\n"
)


def grouped() -> bool:
    group = cgroup.make("/nowhere/instances/0.json")
    cgroup.remove(group)
    return bool(group)


@pytest.mark.skipif(not grouped(), reason="no control groups of version 2 are ours to divide here")
class TestControlGroups:
    async def hidden(self, place: Any, until: Until) -> tuple[EngineProcess, int]:
        """Start an engine that hides a process; return both."""
        plan = LaunchPlan(argv=(sys.executable, "-c", HIDES))
        engine = await EngineProcess.start(place.run_dir, place.launch("", plan=plan))
        await until(lambda: re.search(r"hidden \d+", engine.log_path.read_text()))
        return engine, int(re.search(r"hidden (\d+)", engine.log_path.read_text())[1])  # type: ignore[index]

    async def test_one_that_hides_ends_with_its_engine(self, place: Any, until: Until, alive: Alive) -> None:
        engine, hidden = await self.hidden(place, until)
        assert alive(hidden)
        assert Path(engine.record.cgroup).is_dir()

        assert await engine.end(grace=1) == ""

        assert not alive(hidden)
        assert not Path(engine.record.cgroup).exists()

    async def test_it_is_found_when_its_engine_is_gone_and_the_worker_another(
        self, place: Any, until: Until, alive: Alive
    ) -> None:
        engine, hidden = await self.hidden(place, until)
        os.kill(engine.pid, 9)
        await engine.wait()
        assert alive(hidden)

        assert end_recorded(place.run_dir, grace=0.5) == 1

        assert not alive(hidden)

    async def test_a_failed_start_leaves_no_group(self, place: Any) -> None:
        launch = place.launch("", plan=LaunchPlan(argv=("/no/such/engine",)))
        with pytest.raises(Exception, match="No such file"):
            await EngineProcess.start(place.run_dir, launch)

        group = cgroup.make(str(record_path(place.run_dir, 1)))
        cgroup.remove(group)
        assert not Path(group).exists()

    async def test_a_record_cannot_name_the_group_of_others(self, place: Any, alive: Alive) -> None:
        stranger = subprocess.Popen(["sleep", "60"], start_new_session=True)
        try:
            mine = next(
                line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line[:3] == "0::"
            )
            for group in (f"/sys/fs/cgroup/unified{mine}", f"/sys/fs/cgroup{mine}", "/tmp/gpustack-engine-x"):
                assert cgroup.members(group) == []
                cgroup.kill(group)
            assert stranger.poll() is None
        finally:
            stranger.kill()
            stranger.wait()

    async def test_a_limit_that_cannot_be_set_is_told(
        self, place: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        engine = await EngineProcess.start(place.run_dir, place.launch("slow", memory_limit=1 << 30))

        limit = Path(engine.record.cgroup) / "memory.max"
        if limit.exists():
            assert limit.read_text().strip() == str(1 << 30)
        else:
            assert "the limit of 1.0 GiB is not set" in caplog.text
        await engine.end(grace=0)


async def test_without_a_group_it_runs_all_the_same(
    place: Any, until: Until, alive: Alive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroup, "_ours", lambda: Path("/proc/no"))
    engine = await place.start("has a runaway")
    await until(lambda: re.search(r"grandchild \d+", engine.log_path.read_text()))
    grandchild = int(re.search(r"grandchild (\d+)", engine.log_path.read_text())[1])  # type: ignore[index]

    assert engine.record.cgroup == ""
    assert await engine.end(grace=1) == ""
    assert not alive(grandchild)


async def test_a_number_that_the_system_gives_again_is_a_stranger(place: Any) -> None:
    last = Path("/proc/sys/kernel/ns_last_pid")
    if not os.access(last, os.W_OK):
        pytest.skip("only root may choose the next process's number")
    engine = await place.start("crashes at once")
    await engine.wait()
    record = read_records(place.run_dir)[0]
    stranger = None
    for _ in range(200):  # others start processes as well
        last.write_text(str(record.pid - 1))
        child = subprocess.Popen(["sleep", "60"], start_new_session=True)
        if child.pid == record.pid:
            stranger = child
            break
        child.kill()
        child.wait()
    assert stranger is not None, "no process got that number"
    try:
        assert find_process(place.run_dir, record) is None
        assert await EngineProcess.adopt(place.run_dir, record) is None
        # Not even when the clock of the record says that it might be.
        write_record(place.run_dir, replace(record, started=moment()))
        assert await EngineProcess.adopt(place.run_dir, read_records(place.run_dir)[0]) is None
        assert end_recorded(place.run_dir, grace=0.2) == 1
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


async def test_it_opens_as_many_files_as_it_may_and_leaves_no_core(place: Any, until: Until) -> None:
    engine = await place.start("slow")

    soft, hard = resource.prlimit(engine.pid, resource.RLIMIT_NOFILE)
    assert soft == min(hard, 1 << 20)
    assert resource.prlimit(engine.pid, resource.RLIMIT_CORE)[0] == 0
    await engine.end(grace=1)


SECRETS = {
    "HF_TOKEN": "s3cret-1",
    "HUGGING_FACE_HUB_TOKEN": "s3cret-2",
    "GPUSTACK_TOKEN": "s3cret-3",
    "GPUSTACK_DATABASE_URL": "postgresql://u:s3cret-4@h/d",
    "DATABASE_URL": "mysql://u:s3cret-5@h/d",
    "GPUSTACK_BOOTSTRAP_PASSWORD": "s3cret-6",
    "AWS_SECRET_ACCESS_KEY": "s3cret-7",
    "NVIDIA_API_KEY": "s3cret-8",
    "UV_INDEX_MINE_PASSWORD": "s3cret-9",
    "PIP_INDEX_URL": "https://u:s3cret-10@h/",
}


@pytest.mark.parametrize("given", [{}, {"HF_TOKEN": "the model's own"}])
async def test_none_of_our_secrets_reach_it(
    place: Any, monkeypatch: pytest.MonkeyPatch, given: dict[str, str]
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NVIDIA_DRIVER_CAPABILITIES", "all")
    engine = await EngineProcess.start(place.run_dir, place.launch("slow", env=(given,)))

    deadline = time.monotonic() + 10
    seen = b""
    while b"GPUSTACK_INSTANCE_ID" not in seen and time.monotonic() < deadline:
        seen = Path(f"/proc/{engine.pid}/environ").read_bytes()
    assert b"s3cret" not in seen
    assert (b"HF_TOKEN=the model's own" in seen) == bool(given)
    assert b"NVIDIA_DRIVER_CAPABILITIES=all" in seen
    await engine.end(grace=1)
