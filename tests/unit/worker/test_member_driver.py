"""One member of an instance over several workers, whose worker starts anew while the others go on."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpustack.lifecycle.engine import EngineLimits
from gpustack.schemas import (
    InstanceMember,
    InstanceReport,
    InstanceState,
    MemberState,
    ModelInstancePublic,
)
from gpustack.worker.groups import driver
from gpustack.worker.ports import PortPool
from gpustack.worker.runners.records import EngineRecord
from support.running import free_ports

M = MemberState


class Engine:
    """One that goes on until it is ended."""

    pid, what = 0, "an engine"

    def __init__(self, record: EngineRecord) -> None:
        self.record = record
        self.ended = False

    async def wait(self) -> str:
        await asyncio.Event().wait()
        return ""

    async def end(self, *, grace: float) -> str:
        self.ended = True
        return ""


def instance(others: MemberState, port: int) -> ModelInstancePublic:
    now = datetime.now(UTC)
    members = [
        InstanceMember(number=0, worker_id=1, worker_name="a", state=others, state_message="crashed"),
        InstanceMember(
            number=1, worker_id=2, worker_name="b", state=M.RUNNING, host="127.0.0.1", ports=[port]
        ),
    ]
    return ModelInstancePublic(
        id=7,
        created_at=now,
        updated_at=now,
        name="whole-1",
        model_id=1,
        model_name="whole",
        cluster_id=1,
        worker_id=1,
        backend="any",
        state=InstanceState.ERROR,
        state_since=now,
        members=members,
        attempt=1,
    )


async def test_an_engine_that_was_found_running_ends_when_its_group_has_failed_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, shared = free_ports(2)
    record = EngineRecord(
        instance_id=7, instance_name="whole-1", port=own, log_path="", argv_digest="", attempt=1
    )
    engine, said, over = Engine(record), list[InstanceReport](), asyncio.Event()

    async def adopt(self: Any, _: EngineRecord) -> Engine:
        self._engine = engine
        return engine

    async def model(*_: object) -> Any:
        return SimpleNamespace(restart_on_error=True, health_check_path="")

    def report(_: int, what: InstanceReport) -> None:
        said.append(what)
        if what.member is not None and what.member.state is M.ENDED:
            over.set()

    monkeypatch.setattr(driver.MemberDriver, "_adopt", adopt)
    monkeypatch.setattr(driver, "own_record", lambda *_, **__: record)
    config = SimpleNamespace(
        run_dir=tmp_path, log_dir=tmp_path, grace=1.0, limits=EngineLimits(), advertise_ip="127.0.0.1"
    )
    pool = PortPool([shared], host="")
    shop: Any = SimpleNamespace(
        config=config,
        model_if_any=model,
        ports=PortPool([own]),
        group_ports=pool,
        desk=SimpleNamespace(devices=()),
        report=report,
    )
    running = asyncio.create_task(driver.MemberDriver(shop, instance(M.FAILED, shared), 1).run())
    try:
        async with asyncio.timeout(5):
            await over.wait()
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
    assert engine.ended
    assert said[-1].member is not None
    assert said[-1].member.ports == []
    pool.take("another").free()
