"""Files come whole, once, and in spite of the hub, the network, the disk and kill -9."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from huggingface_hub import hf_hub_download, scan_cache_dir

from gpustack.schemas import ModelFileState
from gpustack.testing.hub import FakeHub
from gpustack.worker.artifacts.hub import DownloadError, HubConfig, HubFiles
from gpustack.worker.artifacts.hub.cache import HubSource

from .conftest import CHAT, Place


async def until(holds: Callable[[], object], what: str, *, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        await asyncio.sleep(0.01)


def children() -> list[psutil.Process]:
    """Return the downloading processes of this one."""
    mine = psutil.Process().children(recursive=True)
    return [each for each in mine if "gpustack.worker.artifacts.hub.download" in " ".join(_command(each))]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.mark.parametrize("repo", ["org/tiny-GGUF", "org/tiny"])
async def test_files_come_into_the_librarys_own_layout(place: Place, hub: FakeHub, repo: str) -> None:
    path = await place.fetch(HubSource(repo=repo))
    main = path if path.is_file() else path / "model.safetensors"
    (known,) = scan_cache_dir(place.cache).repos
    assert known.repo_id == repo
    # The library finds it without asking anybody.
    found = hf_hub_download(repo, main.name, cache_dir=place.cache, local_files_only=True)
    assert Path(found).samefile(main)
    content = hub.repositories[repo].commits[path.parent.name if path.is_file() else path.name]
    assert all(
        (main.parent / name).stat().st_size == file.size
        for name, file in content.items()
        if name != "README.md"
    )
    assert place.told[-1].state is ModelFileState.READY
    assert place.told[-1].resolved_paths == [str(path)]
    assert not children()


async def test_all_who_want_the_same_files_share_one_download(place: Place, hub: FakeHub) -> None:
    hub.faults.rate = 4e6
    files = place.files()
    found = await files.facts(CHAT)
    gets = len(hub.requests(at="content"))
    paths = await asyncio.gather(*(files.fetch(CHAT, found.commit, lambda _progress: None) for _ in range(5)))
    assert len(set(paths)) == 1
    assert len(hub.requests(at="content")) == gets + 1


async def test_two_workers_with_one_cache_fetch_once_and_both_see_the_progress(
    place: Place, hub: FakeHub
) -> None:
    hub.faults.rate = 3e6
    one, two = place.files(), place.files()
    found = await one.facts(CHAT)
    seen: list[float] = []
    paths = await asyncio.gather(
        one.fetch(CHAT, found.commit, lambda _progress: None),
        two.fetch(CHAT, found.commit, lambda progress: seen.append(progress.percent)),
    )
    assert paths[0] == paths[1]
    whole = [each for each in hub.requests(at="content") if not each.headers["Range"].endswith("-262143")]
    assert len(whole) == 1
    assert any(0 < percent < 100 for percent in seen)


@pytest.mark.parametrize("percent", [1, 50, 99])
async def test_a_killed_download_goes_on_where_it_was(
    place: Place, hub: FakeHub, tiny_gguf: Path, percent: int
) -> None:
    size = tiny_gguf.stat().st_size
    # The body stays silent from there on, so that the moment of death is certain.
    found = await place.files().facts(CHAT)
    hub.faults.stalled, hub.faults.cut_after = 1, size * percent // 100
    files = place.files()
    task = asyncio.create_task(files.fetch(CHAT, found.commit, place.seen.append))
    await until(lambda: place.partial() >= hub.faults.cut_after, f"{percent} % are here")
    for each in children():
        each.kill()
    path = await task
    assert path.read_bytes() == tiny_gguf.read_bytes()
    last = hub.requests(at="content")[-1].headers["Range"]
    assert last == f"bytes={hub.faults.cut_after}-{size - 1}"


async def test_a_worker_that_is_killed_takes_its_download_along(
    place: Place, hub: FakeHub, tmp_path: Path
) -> None:
    hub.faults.rate = 1e5
    code = (
        "import asyncio, sys; from pathlib import Path\n"
        "from gpustack.worker.artifacts.hub import *; from gpustack.worker.artifacts.hub.cache import HubSource\n"
        f"files = HubFiles(HubConfig(cache_dir=Path({str(place.cache)!r}), endpoint={hub.url!r}))\n"
        "asyncio.run(files.fetch(HubSource(repo='org/tiny-GGUF'), '', lambda progress: None))\n"
    )
    import sys

    worker = subprocess.Popen([sys.executable, "-c", code])
    await until(children, "it downloads")
    (download,) = children()
    await until(lambda: place.partial() > 0, "bytes come")
    worker.kill()
    worker.wait()
    await until(lambda: not psutil.pid_exists(download.pid) or download.status() == "zombie", "it has ended")
    hub.faults.rate = None
    assert (await place.fetch()).is_file()


@pytest.mark.parametrize("fault", ["truncated", "stalled", "corrupted", "errors", "throttled"])
async def test_what_goes_wrong_on_the_way_is_mended(
    place: Place, hub: FakeHub, tiny_gguf: Path, fault: str
) -> None:
    files = place.files(stall=1.0)
    found = await files.facts(CHAT)
    hub.faults.cut_after = 1_000_000
    setattr(hub.faults, fault, 2 if fault != "corrupted" else 1)
    path = await files.fetch(CHAT, found.commit, place.seen.append)
    assert path.read_bytes() == tiny_gguf.read_bytes()
    if fault == "throttled":
        waited = [each.trouble for each in place.seen if each.trouble]
        assert "limits the rate of requests" in waited[0]
        assert "; trying again in 1 s (attempt 2)" in waited[0]


async def test_a_hub_that_stays_away_is_waited_for_and_said(place: Place, hub: FakeHub) -> None:
    files = place.files()
    found = await files.facts(CHAT)
    hub.faults.errors = 10_000
    task = asyncio.create_task(files.fetch(CHAT, found.commit, place.seen.append))
    await until(lambda: place.seen and place.seen[-1].trouble, "the trouble is said")
    assert "answers 500 for org/tiny-GGUF; trying again in" in place.seen[-1].trouble
    hub.faults.errors = 0
    assert (await task).is_file()


async def test_content_that_is_always_wrong_is_given_up(place: Place, hub: FakeHub) -> None:
    files = place.files()
    found = await files.facts(CHAT)
    hub.faults.corrupted = 10
    with pytest.raises(DownloadError, match="has another content than the hub says each time") as caught:
        await files.fetch(CHAT, found.commit, place.seen.append)
    assert caught.value.again
    assert not list(place.cache.glob("models--*/snapshots/*/*"))


async def test_something_else_without_an_end_does_not_fill_the_disk(
    place: Place, hub: FakeHub, tiny_gguf: Path
) -> None:
    files = place.files()
    found = await files.facts(CHAT)
    hub.faults.endless = 10
    with pytest.raises(DownloadError, match="has another content than the hub says each time"):
        await files.fetch(CHAT, found.commit, place.seen.append)
    assert place.partial() <= tiny_gguf.stat().st_size
    hub.faults.endless = 0
    assert (await files.fetch(CHAT, found.commit, place.seen.append)).read_bytes() == tiny_gguf.read_bytes()


async def test_a_process_that_cannot_be_ended_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One that sleeps stands for one in the D state of a stalled file system, which no signal ends."""
    from gpustack.worker.artifacts.hub import files

    async def in_vain(_pid: int, *, grace: float) -> None: ...

    monkeypatch.setattr(files, "end_tree_async", in_vain)
    monkeypatch.setattr(files, "_GONE", 0.1)
    process = await asyncio.create_subprocess_exec("sleep", "600", stdin=asyncio.subprocess.PIPE)
    try:
        await asyncio.wait_for(files._end(process), 30)
    finally:
        process.kill()
        await process.wait()
    assert "cannot be ended" in caplog.text


async def test_a_cache_that_does_not_answer_is_said(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpustack.worker.artifacts.hub import files as module

    stalled = threading.Event()
    monkeypatch.setattr(module, "make_dir", lambda *_args, **_more: stalled.wait())
    monkeypatch.setattr(module, "_DISK", 0.2)
    try:
        with pytest.raises(DownloadError, match="does not answer; is it on a file system that has stalled"):
            await place.files().fetch(CHAT, "", place.seen.append)
    finally:
        stalled.set()
    assert place.told[-1].state is ModelFileState.ERROR


async def test_a_branch_that_moves_on_meanwhile_changes_nothing(
    place: Place, hub: FakeHub, tiny_gguf: Path
) -> None:
    files = place.files()
    found = await files.facts(CHAT)
    other = hub.add(CHAT.repo, {"tiny-Q4_K_M.gguf": tiny_gguf.read_bytes() + b"\0" * 32})
    path = await files.fetch(CHAT, found.commit, place.seen.append)
    assert path.parent.name == found.commit != other
    assert path.stat().st_size == tiny_gguf.stat().st_size
    assert (await files.facts(CHAT)).commit == other


async def test_a_commit_that_is_gone_ends_with_one_line(place: Place, hub: FakeHub) -> None:
    files = place.files()
    with pytest.raises(DownloadError, match=f"has no branch, tag or commit '{'0' * 40}'") as caught:
        await files.fetch(CHAT, "0" * 40, place.seen.append)
    assert not caught.value.again
    assert place.told[-1].state is ModelFileState.ERROR


async def test_files_that_vanished_are_fetched_again(place: Place, hub: FakeHub) -> None:
    path = await place.fetch()
    path.resolve().unlink()
    assert (await place.fetch()).read_bytes()[:4] == b"GGUF"
    path.unlink()
    assert (await place.fetch()).is_file()
    with path.resolve().open("r+b") as blob:
        blob.truncate(1000)
    assert (await place.fetch()).stat().st_size > 1000


async def test_a_download_that_nobody_wants_ends_and_stays_usable(place: Place, hub: FakeHub) -> None:
    hub.faults.rate = 4e5
    files = place.files()
    found = await files.facts(CHAT)
    wanted = [asyncio.create_task(files.fetch(CHAT, found.commit, lambda _progress: None)) for _ in range(2)]
    await until(lambda: place.partial() > 100_000, "some is here")
    wanted[0].cancel()
    await asyncio.wait([wanted[0]])
    assert children(), "the other one still wants it"
    wanted[1].cancel()
    await asyncio.wait([wanted[1]])
    assert not children()
    assert not files.busy(CHAT)
    assert place.told[-1].state is ModelFileState.ANALYZED
    kept = place.partial()
    assert kept > 100_000
    hub.faults.rate = None
    await files.fetch(CHAT, found.commit, lambda _progress: None)
    assert hub.requests(at="content")[-1].headers["Range"].startswith(f"bytes={kept}-")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a file system of a size of its own")
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True
    ).returncode:
        pytest.skip("this machine does not let us mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


async def test_room_is_looked_for_first_and_both_numbers_are_said(hub: FakeHub, small_disk: Path) -> None:
    (small_disk / "other").write_bytes(b"x" * (2 << 20))
    place = Place(hub, small_disk)
    with pytest.raises(
        DownloadError,
        match=r"no room for org/tiny-GGUF in .*: 3\.2 MiB are needed and 2\.0 MiB free; make room",
    ) as caught:
        await place.fetch()
    assert caught.value.again
    (small_disk / "other").unlink()
    assert (await place.fetch()).is_file()


async def test_a_disk_that_fills_up_meanwhile_is_said_and_gone_on_with(
    hub: FakeHub, small_disk: Path
) -> None:
    place = Place(hub, small_disk)
    hub.faults.rate = 2e6
    files = place.files()
    found = await files.facts(CHAT)
    task = asyncio.create_task(files.fetch(CHAT, found.commit, place.seen.append))
    await until(lambda: place.partial() > 100_000, "it has begun")
    (small_disk / "other").write_bytes(b"x" * (2 << 20))
    with pytest.raises(DownloadError, match=r"no room for .* are needed and .* free"):
        await task
    kept = place.partial()
    assert kept > 0
    (small_disk / "other").unlink()
    hub.faults.rate = None
    assert (await files.fetch(CHAT, found.commit, place.seen.append)).is_file()
    assert hub.requests(at="content")[-1].headers["Range"].startswith(f"bytes={kept}-")


async def test_xet_is_off_unless_it_is_asked_for(tmp_path: Path) -> None:
    from gpustack.worker.artifacts.hub.library import library_environment

    plain = library_environment(HubConfig(cache_dir=tmp_path, token="hf_secret"))
    assert (plain["HF_HUB_DISABLE_XET"], plain["HF_HOME"]) == ("1", str(tmp_path))
    assert "hf_secret" not in str(plain)
    asked = library_environment(HubConfig(cache_dir=tmp_path, xet=True, fast=True))
    assert (asked["HF_HUB_DISABLE_XET"], asked["HF_XET_HIGH_PERFORMANCE"]) == ("0", "1")
    assert "hf_secret" not in repr(HubFiles(HubConfig(cache_dir=tmp_path, token="hf_secret"))._config)


async def test_files_without_xet_come_the_plain_way_when_it_is_on(place: Place) -> None:
    assert (await place.fetch(xet=True)).is_file()
