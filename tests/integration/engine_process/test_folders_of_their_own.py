"""What an engine has outside its data directory is its own, and goes with it whoever ends it."""

import asyncio
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpustack.kit.errors import GPUStackError
from gpustack.plugin import LaunchPlan
from gpustack.worker.leftovers import clear
from gpustack.worker.runners.ending import end_recorded
from gpustack.worker.runners.process import EngineProcess
from gpustack.worker.runners.records import read_records

Ends = Callable[[Any, Any], Any]


async def by_its_worker(place: Any, engine: Any) -> None:
    await engine.end(grace=0.2)


async def by_stopping_everything(place: Any, engine: Any) -> None:
    await asyncio.to_thread(end_recorded, place.run_dir, grace=0.2)


async def by_the_next_worker(place: Any, engine: Any) -> None:
    await clear(place.run_dir, engine.record.instance_id, grace=0.2)


async def refused(place: Any, **changes: Any) -> None:
    launch = place.launch("serve", **changes)
    try:
        await EngineProcess.start(place.run_dir, launch)
    finally:
        launch.lease.free()


@pytest.mark.parametrize("ends", [by_its_worker, by_stopping_everything, by_the_next_worker])
async def test_a_folder_is_for_its_engine_alone_and_goes_with_it(
    ends: Ends, place: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "gpustack-some"
    engine = await place.start("serve", folder=str(folder))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [each.folder for each in read_records(place.run_dir)] == [str(folder)]
    (folder / "logs").mkdir(mode=0o777)
    (folder / "logs" / "a").touch()

    await ends(place, engine)

    assert not folder.exists()


@pytest.mark.parametrize("made", ["open", "link", "file"])
async def test_one_that_somebody_else_has_made_is_not_taken(made: str, place: Any, tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "gpustack-some", tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    if made == "open":
        folder.mkdir()
        folder.chmod(0o777)
    elif made == "link":
        folder.symlink_to(elsewhere)
    else:
        folder.touch()

    with pytest.raises(GPUStackError, match="gpustack-some: somebody else has made this folder; remove it"):
        await refused(place, folder=str(folder))

    assert folder.exists()
    assert elsewhere.exists()
    assert not place.records()


async def test_an_engine_that_cannot_be_started_leaves_none(place: Any, tmp_path: Path) -> None:
    folder = tmp_path / "gpustack-some"
    with pytest.raises(GPUStackError, match="cannot be started"):
        await refused(place, folder=str(folder), plan=LaunchPlan(argv=("/nowhere/engine",)))

    assert not folder.exists()
