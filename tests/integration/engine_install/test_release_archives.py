"""Engines that come as an archive, from a server that may be away, slow, wrong or half there."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from gpustack.plugin import ReleaseBinary
from gpustack.worker.artifacts import ArtifactInstaller, InstallError
from gpustack.worker.artifacts.fetching import Fetcher
from gpustack.worker.artifacts.releases import ArchiveInstaller
from gpustack.worker.artifacts.unpacking import Bounds
from support.archives import ArchiveServer, archive_server, zip_of

WORKS = "#!/bin/sh\necho version: v1.2 $(cat $(dirname $0)/library)\n"
PATH = "/acme/releases/download/v1.2/acme-linux.zip"
SUMS = "/acme/releases/download/v1.2/sha256sum.txt"
NAME = "acme-linux_v1.2"
#: Does not get smaller, so that it comes in many pieces.
LIBRARY = random.Random(0).randbytes(600_000).hex()[:1_000_000]
ARCHIVE = zip_of(acme=WORKS, library=LIBRARY)
DIGEST = hashlib.sha256(ARCHIVE).hexdigest()
ACME = ReleaseBinary(url=f"https://example.invalid{PATH}", version="v1.2", executable="acme", sha256=DIGEST)
LISTED = replace(ACME, sha256="", checksums=f"https://example.invalid{SUMS}")


@pytest.fixture
def server() -> Iterator[ArchiveServer]:
    with archive_server() as served:
        served.files[PATH] = ARCHIVE
        yield served


@pytest.fixture
def make(tmp_path: Path, server: ArchiveServer):
    """Return what makes an installer of archives from the server."""

    def installer(**options) -> ArchiveInstaller:
        given = {"base_url": server.url, "fetcher": Fetcher(first=0.01, stall=5), **options}
        return ArchiveInstaller(bin_dir=tmp_path / "a user" / "bin", log_dir=tmp_path / "log", **given)

    return installer


def releases(tmp_path: Path) -> Path:
    return tmp_path / "a user" / "bin" / "releases"


def leftovers(tmp_path: Path) -> list[str]:
    return sorted(each.name for each in releases(tmp_path).iterdir() if not each.name.endswith(".lock"))


async def fails(installer: ArchiveInstaller, artifact: ReleaseBinary = ACME) -> InstallError:
    with pytest.raises(InstallError) as caught:
        await installer.ensure("acme", artifact)
    assert "\n" not in str(caught.value)
    return caught.value


async def test_it_is_fetched_unpacked_proven_and_not_touched_again(make, server, tmp_path) -> None:
    steps: list[str] = []
    told: list[bool] = []
    installer = make(on_installed=lambda: told.append(True))

    command = await installer.ensure("acme", ACME, steps.append)

    assert command == releases(tmp_path) / NAME / "acme"
    assert (command.parent / "library").read_text() == LIBRARY
    assert os.access(command, os.X_OK)
    link = tmp_path / "a user" / "bin" / NAME
    assert link.resolve() == command
    assert not link.readlink().is_absolute(), "the folder may be moved, or mounted elsewhere"
    assert steps == [
        f"downloading acme-linux.zip from {server.url}{PATH}",
        f"unpacking {NAME}",
        f"checking {NAME}",
    ]
    assert leftovers(tmp_path) == [NAME]
    everything = ArtifactInstaller(bin_dir=tmp_path / "a user" / "bin", data_dir=tmp_path / "data")
    assert everything.installed() == {"acme": ["v1.2"]}

    server.files.clear()
    assert await installer.ensure("acme", ACME, steps.append) == command
    assert await everything.ensure("acme", ACME) == command
    assert (server.paths(), len(steps), told) == ([PATH], 3, [True])


async def test_versions_and_builds_lie_side_by_side(make, server, tmp_path) -> None:
    server.files[PATH.replace("v1.2", "v1.3")] = zip_of(acme=WORKS.replace("v1.2", "v1.3"), library="x")
    server.files[PATH.replace("linux", "linux-cuda")] = zip_of(acme=WORKS, library="cuda")
    installer = make()
    newer = ReleaseBinary(url=ACME.url.replace("v1.2", "v1.3"), version="v1.3", executable="acme")
    other = ReleaseBinary(url=ACME.url.replace("linux", "linux-cuda"), version="v1.2", executable="acme")

    found = [await installer.ensure("acme", each) for each in (ACME, newer, other)]

    assert [each.parent.name for each in found] == [NAME, "acme-linux_v1.3", "acme-linux-cuda_v1.2"]
    assert (found[2].parent / "library").read_text() == "cuda"


async def test_many_callers_wait_for_one_installation(make, server, tmp_path) -> None:
    """Two workers that share the folder, with several instances each."""
    server.delay = 0.2
    first, second = make(), make()
    steps: list[str] = []

    found = await asyncio.gather(
        *(each.ensure("acme", ACME, steps.append) for each in (first, first, second))
    )

    assert len(set(found)) == 1
    assert server.paths() == [PATH]
    assert f"waiting for another process that installs {NAME}" in steps


async def test_a_digest_from_a_list_counts(make, server) -> None:
    server.files[SUMS] = f"{'0' * 64}  other.zip\n{DIGEST} *acme-linux.zip\n".encode()

    assert await make().ensure("acme", LISTED)

    assert server.paths() == [SUMS, PATH]


async def test_without_a_list_nothing_is_compared(make, server, caplog) -> None:
    assert await make().ensure("acme", LISTED)

    assert "comes without a digest" in caplog.text


async def test_another_digest_each_time_is_final_and_leaves_nothing(make, server, tmp_path) -> None:
    server.files[PATH] = zip_of(acme="#!/bin/sh\ntouch evil\n", library="")

    error = await fails(make())

    assert f"and is to have {DIGEST[:12]}…" in str(error)
    assert not error.again
    assert server.paths() == [PATH, PATH], "once more, since a proxy may have kept half of it"
    assert leftovers(tmp_path) == []


async def test_a_broken_download_goes_on_where_it_ended(make, server) -> None:
    server.breaks = [200_000, 100_000]

    command = await make().ensure("acme", ACME)

    assert [each.range for each in server.asked] == ["", "bytes=200000-", "bytes=300000-"]
    assert (command.parent / "library").read_text() == LIBRARY


async def test_a_server_without_ranges_sends_all_of_it_again(make, server) -> None:
    server.breaks, server.whole = [200_000], True

    assert await make().ensure("acme", ACME)


async def test_what_a_killed_worker_had_fetched_is_continued(make, server, tmp_path) -> None:
    server.breaks = [200_000, 0, 0]
    assert "the connection broke off" in str(await fails(make()))
    (releases(tmp_path) / f".{NAME}.new").mkdir()
    server.asked.clear()

    assert await make().ensure("acme", ACME)

    assert [each.range for each in server.asked] == ["bytes=200000-"]
    assert leftovers(tmp_path) == [NAME]


async def test_half_of_an_archive_that_has_changed_since_is_not_continued(make, server) -> None:
    server.files[PATH] = zip_of(acme=WORKS, library="older" + LIBRARY)
    server.breaks = [200_000, 0, 0]
    await fails(make())
    server.files[PATH] = ARCHIVE

    assert await make().ensure("acme", ACME)


async def test_a_cancelled_one_is_continued_and_nothing_stays_locked(make, server) -> None:
    server.delay = 30
    task = asyncio.create_task(make().ensure("acme", ACME))
    while not server.asked:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    server.delay = 0

    assert await make().ensure("acme", ACME)


@pytest.mark.parametrize("artifact", [ACME, LISTED])
async def test_nobody_there_is_worth_another_attempt(make, artifact) -> None:
    """Port 9 of loopback answers nobody. A password in the address is nobody's business."""
    error = await fails(make(base_url="http://me:secret@127.0.0.1:9/mirror"), artifact)

    assert str(error).startswith("http://127.0.0.1:9/mirror/acme/")
    assert "check the network, the proxy variables, or --tools-download-base-url" in str(error)
    assert "secret" not in str(error)
    assert error.again


async def test_the_server_is_back(make, server) -> None:
    server.statuses = [503, 502]

    assert await make().ensure("acme", ACME)


async def test_a_server_that_stays_in_trouble_is_said(make, server) -> None:
    server.statuses = [503] * 3

    error = await fails(make())

    assert "it answers with status 503" in str(error)
    assert error.again


@pytest.mark.parametrize(
    ("status", "said"),
    [(404, "there is no acme-linux.zip at http://127.0.0.1"), (403, "refuses acme-linux.zip: status 403")],
)
async def test_what_does_not_exist_is_not_asked_for_again(make, server, status, said) -> None:
    server.statuses = [status]

    error = await fails(make())

    assert said in str(error)
    assert not error.again
    assert server.paths() == [PATH]


@pytest.mark.parametrize(
    ("archive", "said", "again"),
    [
        (zip_of(other=WORKS), "holds no acme; it is another archive", False),
        (b"<html>Please log in</html>", "it is no zip and no tar archive", False),
        (
            zip_of(acme="#!/bin/sh\necho cannot load; exit 3\n"),
            "ended with status 3: cannot load; see ",
            True,
        ),
        (zip_of(acme="#!/bin/sh\necho version 7\n"), "--version does not name version v1.2", True),
        (zip_of(acme=b"\x7fELF nonsense"), "it is no program for this machine", True),
        (zip_of(acme="#!/nonexistent/sh\n"), "it cannot be started: No such file or directory", True),
    ],
)
async def test_what_is_no_working_engine_is_said_and_removed(
    make, server, tmp_path, archive, said, again
) -> None:
    server.files[PATH] = archive

    error = await fails(make(), replace(ACME, sha256=""))

    assert said in str(error)
    assert error.again is again
    assert leftovers(tmp_path) == []
    assert not (tmp_path / "a user" / "bin" / NAME).exists()


async def test_an_archive_that_leads_out_is_refused(make, server, tmp_path) -> None:
    server.files[PATH] = zip_of(**{"acme": WORKS, "../../evil": "x"})

    error = await fails(make(), replace(ACME, sha256=""))

    assert "'../../evil' in it is no name below a folder" in str(error)
    assert not list(tmp_path.rglob("evil"))
    assert leftovers(tmp_path) == []


async def test_one_that_unpacks_to_too_much_is_refused(make, tmp_path) -> None:
    assert "its files are larger than" in str(await fails(make(bounds=Bounds(total=500_000))))
    assert leftovers(tmp_path) == []


async def test_an_engine_that_hangs_is_ended(make, server) -> None:
    server.files[PATH] = zip_of(acme="#!/bin/sh\nsleep 60\n")

    error = await fails(make(verify_timeout=0.5), replace(ACME, sha256=""))

    assert "it did not answer --version within" in str(error)


async def test_no_room_is_one_line_before_anything_is_fetched(make, server, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _path: SimpleNamespace(free=64 << 20))

    error = await fails(make())

    assert "is full: acme-linux.zip takes " in str(error)
    assert error.again
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
async def test_a_disk_that_fills_up_meanwhile_is_one_line(make, monkeypatch, tmp_path, number) -> None:
    def full(*_: object) -> None:
        raise OSError(number, os.strerror(number), "somewhere")

    monkeypatch.setattr("gpustack.worker.artifacts.releases.unpack", full)

    error = await fails(make())

    assert f"the disk of {tmp_path}/a user/bin is full" in str(error)
    assert error.again
    monkeypatch.undo()
    assert await make().ensure("acme", ACME)


async def test_what_breaks_is_repaired(make, server, tmp_path) -> None:
    installer = make()
    command = await installer.ensure("acme", ACME)

    command.write_text("#!/bin/sh\nexit 1\n")
    assert await installer.ensure("acme", ACME) == command
    assert command.read_text() == WORKS

    (tmp_path / "a user" / "bin" / NAME).unlink()
    assert await installer.ensure("acme", ACME) == command
    assert leftovers(tmp_path) == [NAME]


async def test_an_engine_put_there_by_hand_is_taken(make, server, tmp_path) -> None:
    by_hand = tmp_path / "a user" / "bin" / NAME
    by_hand.parent.mkdir(parents=True)
    by_hand.write_text("#!/bin/sh\necho acme 1.2\n")
    by_hand.chmod(0o755)

    assert await make().ensure("acme", ACME) == by_hand
    assert server.paths() == []


async def test_what_somebody_put_there_is_not_overwritten(make, server, tmp_path) -> None:
    by_hand = tmp_path / "a user" / "bin" / NAME
    by_hand.parent.mkdir(parents=True)
    by_hand.write_text("#!/bin/sh\necho mine\n")
    by_hand.chmod(0o755)

    with pytest.raises(InstallError, match="was not put there by GPUStack, and is not acme v") as caught:
        await make().ensure("acme", ACME)

    assert not caught.value.again
    assert by_hand.read_text() == "#!/bin/sh\necho mine\n"
    assert server.paths() == []


async def test_it_is_removed_with_all_that_is_left_of_it(make, server, tmp_path) -> None:
    installer = make()
    await installer.ensure("acme", ACME)

    assert await installer.remove(ACME)
    assert not await installer.remove(ACME)

    assert leftovers(tmp_path) == []
    assert [each.name for each in (tmp_path / "a user" / "bin").iterdir()] == ["releases"]


async def test_a_proxy_is_asked(make, server, monkeypatch) -> None:
    """The host exists nowhere: only the proxy can have answered."""
    monkeypatch.setenv("http_proxy", server.url)

    assert await make(base_url="http://releases.invalid").ensure("acme", ACME)

    assert [each.host for each in server.asked] == ["releases.invalid"]


@pytest.mark.parametrize("version", ["../../x", "a b", "x" * 300])
async def test_a_name_that_is_none_is_refused(make, version) -> None:
    assert "is no name for an installation" in str(await fails(make(), replace(ACME, version=version)))


async def test_how_far_it_is_is_said(make, server, monkeypatch) -> None:
    monkeypatch.setattr("gpustack.worker.artifacts.fetching._TELL", 0.0)
    steps: list[str] = []

    await make().ensure("acme", ACME, steps.append)

    assert any("downloading acme-linux.zip: " in step and "(100 %)" in step for step in steps)
