"""Engines as real containers: started with what they need and no more, watched, adopted, ended, cleaned up after."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpustack.kit.errors import GPUStackError, InvalidInput
from gpustack.plugin import LaunchPlan
from gpustack.worker.probe import answers
from gpustack.worker.runners import engine as engines
from gpustack.worker.runners.container import ContainerEngine
from gpustack.worker.runners.daemon import NoContainerEngine
from gpustack.worker.runners.ending import end_recorded, sweep_containers
from gpustack.worker.runners.records import read_records, remove_record, write_record

pytestmark = [
    pytest.mark.slow,
    pytest.mark.root,
    pytest.mark.xdist_group("engine-container"),
    pytest.mark.timeout(600),
]

Until = Callable[..., Awaitable[None]]


def said(engine: engines.Engine, pattern: str) -> re.Match[str] | None:
    return re.search(pattern, engine.log_path.read_text())


async def ready(engine: engines.Engine, until: Until) -> None:
    deadline = time.monotonic() + 20
    while not await answers(engine.record.port, "/health", timeout=1):
        assert time.monotonic() < deadline, engine.tail()


async def test_it_answers_on_loopback_and_its_log_is_ours(place: Any, until: Until) -> None:
    engine = await place.start("fine")
    watching = asyncio.create_task(engine.wait())
    await ready(engine, until)
    await until(lambda: said(engine, "hello"))

    inspected = json.loads(place.docker("inspect", engine.record.container))[0]
    assert inspected["HostConfig"]["NetworkMode"] == "host"
    assert inspected["HostConfig"]["Privileged"] is False
    assert engine.pid == inspected["State"]["Pid"]
    assert engine.running_for() < 60

    assert await engine.end(grace=2) == ""
    assert "exited" in await watching or "killed" in await watching
    assert (place.records(), place.containers()) == ([], [])


async def test_it_sees_the_model_read_only_and_nothing_of_our_secrets(
    place: Any, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    model = place.root / "model.gguf"
    model.write_text("weights")
    code = (
        "import os; print('ENV', *sorted(os.environ), flush=True); print('SAYS', open(os.environ['M']).read());"
        "\ntry: open(os.environ['M'], 'a')\nexcept OSError as error: print('WRITES', error.strerror)"
        "\nopen('made', 'w').write('x')"
    )
    launch = place.launch(
        env=({"M": "plugin"}, {"M": str(model)}),
        plan=LaunchPlan(argv=("x",), cwd=str(place.root / "scratch" / "1")),
    )
    container = replace(launch.container, arguments=("-c", code), reads={str(model): str(model)})

    engine = await ContainerEngine.start(place.run_dir, launch, container)

    assert "exited with status 0 after" in await engine.wait()
    text = engine.log_path.read_text()
    names = set(re.search(r"ENV (.*)", text)[1].split())  # type: ignore[index]
    assert {each for each in names if each.startswith(("GPUSTACK", "HF_"))} == {
        "GPUSTACK_INSTANCE_ID",
        "GPUSTACK_INSTANCE_RECORD",
    }
    assert "SAYS weights" in text
    assert "WRITES Read-only file system" in text
    assert (launch.scratch / "made").exists()
    await engine.end(grace=0)


async def test_device_files_are_given(place: Any, until: Until) -> None:
    launch = place.launch()
    container = replace(
        launch.container,
        arguments=("-c", "import os, stat; print('CHAR', stat.S_ISCHR(os.stat('/dev/fuse').st_mode))"),
        devices=("/dev/fuse",),
    )
    if not Path("/dev/fuse").exists():
        pytest.skip("this machine has no /dev/fuse")

    engine = await ContainerEngine.start(place.run_dir, launch, container)

    await engine.wait()
    assert said(engine, "CHAR True")
    await engine.end(grace=0)


async def test_a_crash_is_described_with_its_last_lines(place: Any) -> None:
    engine = await place.start("crashes at once")

    assert re.fullmatch(r"exited with status 3 after \d+(\.\d)? s", await engine.wait())
    assert engine.tail() == "engine crashes at once says hello\ncannot load the model"
    await engine.end(grace=0)


async def test_one_that_ignores_the_polite_signal_ends_with_all_it_started(place: Any, until: Until) -> None:
    engine = await place.start("ignores SIGTERM")
    await ready(engine, until)

    began = time.monotonic()
    assert await engine.end(grace=1) == ""

    assert time.monotonic() - began < 8
    assert not Path(f"/proc/{engine.pid}").exists()


async def test_memory_beyond_the_limit_is_told(place: Any) -> None:
    launch = place.launch(memory_limit=64 << 20)
    container = replace(launch.container, arguments=("-c", "x = bytearray(200 << 20)"))

    engine = await ContainerEngine.start(place.run_dir, launch, container)

    assert "it took more memory than its limit of 64.0 MiB" in await engine.wait()
    await engine.end(grace=0)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"entrypoint": ("/no/engine",)}, "has no program /no/engine"),
        ({"entrypoint": ("nothing-of-the-sort",)}, "has no program nothing-of-the-sort"),
        ({"image": "nosuch:9"}, "removed from this machine"),
    ],
)
async def test_one_that_cannot_be_started_says_why_and_leaves_nothing(
    place: Any, changes: dict[str, Any], says: str
) -> None:
    launch = place.launch("fine")

    with pytest.raises(GPUStackError, match=says) as caught:
        await ContainerEngine.start(place.run_dir, launch, replace(launch.container, **changes))

    assert isinstance(caught.value, InvalidInput) == ("entrypoint" in changes)
    assert "\n" not in caught.value.message
    assert (place.records(), place.containers()) == ([], [])


class TestAfterAWorkerDied:
    def orphan(self, place: Any, code: str) -> None:
        """Run ``code`` in a worker that is killed right after."""
        root, tests = str(Path(__file__).parent), str(Path(__file__).parents[2])
        program = (
            "import asyncio, os, signal, sys; from pathlib import Path\n"
            f"sys.path[:0] = [{root!r}, {tests!r}]; from conftest import Place\n"
            "from support.containers import Docker\n"
            f"place = Place(Path({str(place.root)!r}), Docker(Path({str(place.docker.socket)!r})))\n"
            f"{code}\nos.kill(os.getpid(), signal.SIGKILL)\n"
        )
        done = subprocess.run([sys.executable, "-c", program], check=False, timeout=120)
        assert done.returncode == -signal.SIGKILL

    async def test_it_serves_on_and_is_adopted_with_all_of_its_log(self, place: Any, until: Until) -> None:
        self.orphan(place, "asyncio.run(place.start('fine'))")
        [record] = read_records(place.run_dir)

        began = time.monotonic()
        engine = await engines.adopt(place.run_dir, record)
        took = time.monotonic() - began

        assert engine is not None
        assert took < 2
        await ready(engine, until)
        watching = asyncio.create_task(engine.wait())
        await until(lambda: said(engine, "hello"))
        os.kill(engine.pid, signal.SIGKILL)
        assert "was killed by signal 9" in await watching
        assert engine.log_path.read_text().count("hello") == 1
        await engine.end(grace=0)

    async def test_it_is_found_by_its_labels_when_the_record_was_not_completed(self, place: Any) -> None:
        engine = await place.start("fine")
        write_record(place.run_dir, replace(engine.record, pid=0, started=0.0, container=""))

        adopted = await engines.adopt(place.run_dir, read_records(place.run_dir)[0])

        assert adopted is not None
        assert adopted.record.container == engine.record.container
        assert adopted.pid == engine.pid
        await adopted.end(grace=1)

    async def test_one_that_was_only_made_is_no_engine_and_is_removed(self, place: Any) -> None:
        self.orphan(
            place,
            "import docker\n"
            "docker.APIClient.start = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
            "asyncio.run(place.start('fine'))",
        )
        assert len(place.containers()) == 1

        assert await engines.adopt(place.run_dir, read_records(place.run_dir)[0]) is None
        engine = await place.start("fine")

        assert len(place.containers()) == 1
        assert await engines.adopt(place.run_dir, engine.record) is not None
        await engine.end(grace=1)

    async def test_without_its_record_it_is_swept_up(self, place: Any) -> None:
        engine = await place.start("fine")
        kept = await place.start("fine", number=2)
        remove_record(place.run_dir, 1)

        assert sweep_containers(place.run_dir, keep={2}) == [1]

        assert len(place.containers()) == 1
        assert not Path(f"/proc/{engine.pid}").exists()
        await kept.end(grace=1)

    async def test_everything_ends_when_everything_is_to_end(self, place: Any) -> None:
        for number in (1, 2):
            await place.start("fine", number=number)
        remove_record(place.run_dir, 2)

        assert end_recorded(place.run_dir, grace=1) == 2

        assert (place.records(), place.containers()) == ([], [])

    async def test_another_data_directorys_containers_are_strangers(self, place: Any, tmp_path: Path) -> None:
        engine = await place.start("fine")
        other = tmp_path / "other" / "run"
        other.mkdir(parents=True)
        (other / "container-engines").write_text((place.run_dir / "container-engines").read_text())

        assert sweep_containers(other, keep=()) == []
        assert await engines.adopt(other, engine.record) is None

        assert Path(f"/proc/{engine.pid}").exists()
        await engine.end(grace=1)


class TestWithoutItsContainerEngine:
    async def test_it_is_adopted_all_the_same(
        self, place: Any, monkeypatch: pytest.MonkeyPatch, until: Until
    ) -> None:
        engine = await place.start("fine")
        elsewhere = replace(engine.record, daemon=f"unix://{place.root}/none.sock")

        began = time.monotonic()
        adopted = await engines.adopt(place.run_dir, elsewhere)

        assert adopted is not None
        assert time.monotonic() - began < 1
        assert await engine.end(grace=1) == ""
        assert await engines.adopt(place.run_dir, elsewhere) is None

    async def test_the_end_of_the_engine_is_told_and_the_next_start_waits_for_it(
        self, place: Any, until: Until
    ) -> None:
        engine = await place.start("fine")
        watching = asyncio.create_task(engine.wait())
        await ready(engine, until)

        await asyncio.to_thread(place.docker.stop)
        starting = None
        try:
            description = await asyncio.wait_for(watching, 30)
            assert (
                "ended with its container engine" in description
                or "was killed" in description
                or ("exited" in description)
            )
            assert await engine.end(grace=1) == ""
            starting = asyncio.create_task(place.start("fine"))
            await asyncio.sleep(0.5)
        finally:
            # Here, since it ends with the thread that started it.
            place.docker.start()

        again = await starting
        await ready(again, until)
        assert len(place.containers()) == 1
        await again.end(grace=1)

    async def test_nothing_there_is_one_line(self, place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("gpustack.worker.runners.container._RESTARTING", 0.0)
        monkeypatch.setenv("DOCKER_HOST", f"unix://{place.root}/none.sock")

        with pytest.raises(NoContainerEngine, match=r"no container engine is at DOCKER_HOST=.*/none.sock"):
            await place.start("fine")

        assert not place.records()
