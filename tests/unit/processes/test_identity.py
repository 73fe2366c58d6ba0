"""Who a process is does not depend on what the clock says."""

import asyncio
import errno
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace

import psutil
import pytest

from gpustack.kit.process import ProcessId, age, identify, is_running, moment, wait_gone


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def test_a_process_stays_itself_when_the_clock_is_set(
    sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = identify(sleeper.pid)
    assert before is not None
    boot, now = psutil.boot_time(), time.time()
    monkeypatch.setattr("psutil.boot_time", lambda: boot + 600)
    monkeypatch.setattr("psutil._psplatform.boot_time", lambda: boot + 600)
    monkeypatch.setattr("time.time", lambda: now + 600)

    assert is_running(before)
    assert identify(sleeper.pid) == before
    assert age(before) < 300


def test_its_age_is_counted_from_its_start(sleeper: subprocess.Popen[bytes]) -> None:
    began = moment()
    who = identify(sleeper.pid)

    assert who is not None
    assert abs(who.started - began) < 60
    assert 0 <= age(who) < 60


def test_another_start_or_no_process_is_not_it(sleeper: subprocess.Popen[bytes]) -> None:
    who = identify(sleeper.pid)
    assert who is not None

    assert not is_running(replace(who, started=who.started - 1))
    sleeper.kill()
    sleeper.wait()
    assert identify(who.pid) is None
    assert not is_running(who)


def test_a_time_of_the_clock_matches_nobody() -> None:
    assert not is_running(ProcessId(pid=os.getpid(), started=psutil.Process().create_time()))


async def test_without_a_descriptor_of_the_process_its_end_is_waited_for_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Old kernels have none, filters forbid them, and a process may have run out of them."""

    def none_left(pid: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("os.pidfd_open", none_left, raising=False)
    child = subprocess.Popen(["sleep", "60"])
    try:
        who = identify(child.pid)
        assert who is not None
        waiting = asyncio.create_task(wait_gone(who, poll=0.01))
        await asyncio.sleep(0.1)
        assert not waiting.done()
    finally:
        child.kill()
        child.wait()
    await asyncio.wait_for(waiting, 10)
