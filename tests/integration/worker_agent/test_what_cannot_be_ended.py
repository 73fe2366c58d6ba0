"""An engine that cannot be ended, as one that waits for a device that hangs, keeps its memory: nothing beside it.

No process here can be made to wait like that, so signals to engines go nowhere in its place.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from gpustack.kit.errors import GPUStackError
from gpustack.worker.runners.process import EngineProcess
from gpustack.worker.runners.records import read_records

RUNNING = "running"


@contextlib.contextmanager
def unending() -> Iterator[None]:
    """Engines cannot be ended until the block has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gpustack.worker.runners.ending._signal", lambda *_, **__: None)
        patch.setattr("gpustack.worker.runners.cgroup.kill", lambda _: None)
        patch.setattr("gpustack.worker.runners.ending._FOR_GOOD", 0.2)
        yield


def engines() -> list[int]:
    """Return the fake engines that the test's process has started."""
    children = [each for each in psutil.Process().children() if each.status() != psutil.STATUS_ZOMBIE]
    return [each.pid for each in children if any("fake_engine" in part for part in each.cmdline())]


@pytest.mark.slow
async def test_no_second_engine_is_started_beside_it(fleet: Any, server: Any, until: Any) -> None:
    await fleet.start(grace=0.1)
    server.want(1, fleet.a_model("hangs later"))
    await until(lambda: server.last(1)["state"] == RUNNING)
    before = engines()
    with unending():
        await until(lambda: "cannot be ended" in server.last(1).get("state_message", ""), seconds=30)
        assert str(before[0]) in server.last(1)["state_message"]
        assert "trying again" in server.last(1)["state_message"]
        assert engines() == before
        assert [record.pid for record in read_records(fleet.config.run_dir)] == before

    await until(lambda: server.last(1)["state"] == RUNNING and engines() != before, seconds=30)
    assert len(engines()) == 1


async def test_a_draining_instance_has_not_ended_before_it(fleet: Any, server: Any, until: Any) -> None:
    await fleet.start(grace=0.1)
    server.want(1, fleet.a_model())
    await until(lambda: server.last(1)["state"] == RUNNING)
    before = engines()
    with unending():
        row = server.things["model-instances"][1]
        server.put("model-instances", {**row, "draining_since": row["updated_at"], "drain_seconds": 0})
        await until(lambda: "cannot be ended" in server.last(1).get("state_message", ""), seconds=30)
        assert not any(report.get("ended") for *_, report in server.reports)

    await until(lambda: any(report.get("ended") for *_, report in server.reports), seconds=30)
    assert not engines()
    assert before


async def test_an_adoption_that_fails_is_tried_again(
    fleet: Any, server: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fleet.start(keep_engines=True)
    server.want(1, fleet.a_model())
    await until(lambda: server.last(1)["state"] == RUNNING)
    before = engines()
    await fleet.stop()
    server.reports.clear()
    adopt, failures = (
        EngineProcess.adopt,
        [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), GPUStackError("x")],
    )

    async def fails_at_first(*args: Any) -> Any:
        if failures:
            raise failures.pop()
        return await adopt(*args)

    monkeypatch.setattr(EngineProcess, "adopt", fails_at_first)
    await fleet.start(keep_engines=True)
    await until(lambda: server.last(1)["state"] == RUNNING)
    assert engines() == before


async def test_an_engine_is_adopted_when_its_record_cannot_be_written(
    fleet: Any, server: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fleet.start(keep_engines=True)
    server.want(1, fleet.a_model())
    await until(lambda: server.last(1)["state"] == RUNNING)
    (before,) = engines()
    await fleet.stop()
    (path,) = fleet.config.run_dir.glob("instances/*.json")
    path.write_text(path.read_text().replace(f'"pid": {before}', '"pid": 0'))

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("gpustack.worker.runners.process.write_record", full)
        server.reports.clear()
        await fleet.start(keep_engines=True)
        await until(lambda: server.last(1)["state"] == RUNNING)
    assert engines() == [before]


async def test_an_instance_that_is_not_understood_keeps_its_engine(
    fleet: Any, server: Any, until: Any
) -> None:
    """A server one minor newer may know states that this worker does not."""
    await fleet.start(keep_engines=True)
    server.want(1, fleet.a_model())
    server.want(2, fleet.a_model())
    await until(lambda: server.last(1)["state"] == RUNNING == server.last(2)["state"])
    before = sorted(engines())
    await fleet.stop()
    row = server.things["model-instances"][1]
    row["state"] = "a-state-of-next-year"
    server.things["model-instances"][2]["state"] = "pending"  # it was taken from this worker meanwhile

    await fleet.start(keep_engines=True)
    await until(lambda: len(engines()) == 1)
    assert [record.instance_id for record in read_records(fleet.config.run_dir)] == [1]
    assert engines()[0] in before
    server.drop("model-instances", 1)
