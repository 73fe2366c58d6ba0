"""Images fetched from a real registry by a real container engine, and what is said when they cannot be."""

import asyncio
import base64
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpustack.worker.artifacts import InstallError
from gpustack.worker.runners.images import Images
from support.containers import BASE_IMAGE, PASSWORD, USER, DockerEngine, registry
from support.running import free_ports

pytestmark = [
    pytest.mark.slow,
    pytest.mark.root,
    pytest.mark.xdist_group("engine-container"),
    pytest.mark.timeout(600),
]


class Shelf:
    """A registry's folder with the image ``box/base:1`` in it."""

    def __init__(self, folder: Path, docker: DockerEngine) -> None:
        self.folder, self.docker = folder, docker
        (self.port,) = free_ports(1)
        self.name = f"127.0.0.1:{self.port}"
        self.image = f"{self.name}/box/base:1"
        with registry(folder, self.port):
            docker("tag", BASE_IMAGE, self.image)
            docker("push", "--quiet", self.image)
        self.images = Images(self.name)
        self.said: list[str] = []

    async def fetch(self, image: str = "box/base:1") -> str:
        return await self.images.ensure(image, self.said.append)


@pytest.fixture(scope="module")
def shelf_once(docker: DockerEngine, tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("registry"), docker)


@pytest.fixture
def shelf(shelf_once: Shelf, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Shelf]:
    """The machine has neither the image nor a login."""
    shelf_once.docker("rmi", "--force", shelf_once.image, check=False)
    # Its layers too, or nothing is fetched.
    shelf_once.docker("image", "prune", "--all", "--force")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{shelf_once.docker.socket}")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    shelf_once.said.clear()
    return shelf_once


async def test_it_is_fetched_once_with_progress(shelf: Shelf) -> None:
    with registry(shelf.folder, shelf.port):
        first, second = await asyncio.gather(shelf.fetch(), shelf.fetch())

    assert first == second == shelf.image
    assert shelf.said[0] == f"pulling the image {shelf.image}"
    assert len([line for line in shelf.said if line == shelf.said[0]]) == 1
    assert any("layers)" in line or "%)" in line for line in shelf.said)
    # Its registry is gone, and nobody asks.
    assert await shelf.fetch() == shelf.image


async def test_without_its_registry_another_try_may_help(shelf: Shelf) -> None:
    with pytest.raises(
        InstallError, match=rf"{shelf.name} cannot be reached .*; it is tried again"
    ) as caught:
        await shelf.fetch()

    assert caught.value.again
    with registry(shelf.folder, shelf.port):
        await shelf.fetch()


@pytest.mark.parametrize("image", ["box/base:2", "box/nothing:1", "BOX:1"])
async def test_what_does_not_exist_is_not_tried_again(shelf: Shelf, image: str) -> None:
    with registry(shelf.folder, shelf.port):
        with pytest.raises(InstallError, match=r"no such image or tag|is no name of an image") as caught:
            await shelf.fetch(image)

    assert not caught.value.again


async def test_a_login_is_asked_for_and_taken(shelf: Shelf, tmp_path: Path) -> None:
    with registry(shelf.folder, shelf.port, login=True):
        with pytest.raises(InstallError, match=f"docker login {shelf.name}") as caught:
            await shelf.fetch()
        assert not caught.value.again

        known = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        (tmp_path / "config.json").write_text(json.dumps({"auths": {shelf.name: {"auth": known}}}))
        assert await shelf.fetch() == shelf.image


async def test_who_is_cancelled_leaves_nobody_waiting(shelf: Shelf) -> None:
    with registry(shelf.folder, shelf.port):
        pulling: asyncio.Task[Any] = asyncio.create_task(shelf.fetch())
        while not shelf.said:
            await asyncio.sleep(0.01)
        pulling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pulling

        assert await shelf.fetch() == shelf.image


async def test_a_full_disk_is_told(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    small = DockerEngine()
    data = small.socket.parent / "data"
    data.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", data]).returncode != 0:
        pytest.skip("nothing can be mounted here")
    try:
        small.start()
        monkeypatch.setenv("DOCKER_HOST", f"unix://{small.socket}")
        with registry(shelf.folder, shelf.port):
            with pytest.raises(
                InstallError, match=f"no space is left .* at {data}; make room there"
            ) as caught:
                await shelf.fetch()
    finally:
        small.discard()

    # Somebody may make room.
    assert caught.value.again
