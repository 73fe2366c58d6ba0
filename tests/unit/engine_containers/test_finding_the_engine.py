"""Which container engine a worker uses, and what is said where there is none."""

import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gpustack.worker.runners import daemon
from gpustack.worker.runners.daemon import NoContainerEngine, find, places

DOCKER = {"Version": "28.2.2", "ApiVersion": "1.50", "Components": [{"Name": "Engine"}]}
PODMAN = {"Version": "4.3.1", "ApiVersion": "1.41", "Components": [{"Name": "Podman Engine"}]}


@contextmanager
def answering(path: Path, version: dict[str, Any], info: dict[str, Any]) -> Iterator[str]:
    """Answer at a socket as a container engine does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    asked = connection.recv(65536)
                    body = json.dumps(version if b"/version" in asked else info).encode()
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"unix://{path}"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A machine without the system's engines, and the environment of a user there."""
    env = {"XDG_RUNTIME_DIR": str(tmp_path / "run"), "HOME": str(tmp_path / "home")}
    real = places(env)
    monkeypatch.setattr(daemon, "places", lambda env: [each for each in real if tmp_path in each.parents])
    return env


def test_the_one_that_is_named_alone_counts(tmp_path: Path, nowhere: dict[str, str]) -> None:
    own = Path(nowhere["XDG_RUNTIME_DIR"]) / "podman" / "podman.sock"
    with answering(own, PODMAN, {}), answering(tmp_path / "d.sock", DOCKER, {"DockerRootDir": "/x"}) as url:
        found = find({**nowhere, "DOCKER_HOST": url})
        assert (found.name, found.api, found.root, found.rootless) == ("Docker 28.2.2", "1.50", "/x", False)

        with pytest.raises(
            NoContainerEngine, match=r"no container engine is at DOCKER_HOST=unix:///no/such.sock"
        ):
            find({**nowhere, "DOCKER_HOST": "unix:///no/such.sock"})


def test_podman_of_a_user_is_found(nowhere: dict[str, str]) -> None:
    own = Path(nowhere["XDG_RUNTIME_DIR"]) / "podman" / "podman.sock"
    with answering(own, PODMAN, {"SecurityOptions": ["name=seccomp", "name=rootless"]}) as url:
        found = find(nowhere)

    assert (found.kind, found.url, found.rootless) == ("Podman", url, True)


def test_docker_without_root_is_refused(nowhere: dict[str, str]) -> None:
    own = Path(nowhere["XDG_RUNTIME_DIR"]) / "docker.sock"
    with answering(own, DOCKER, {"SecurityOptions": ["name=rootless"]}):
        with pytest.raises(NoContainerEngine, match=r"runs without root, .* use Podman"):
            find(nowhere)


def test_none_at_all(nowhere: dict[str, str]) -> None:
    with pytest.raises(
        NoContainerEngine, match=r"no container engine is on this worker: install Docker or Podman"
    ):
        find(nowhere)


def test_one_that_is_not_running(nowhere: dict[str, str]) -> None:
    path = Path(nowhere["XDG_RUNTIME_DIR"]) / "docker.sock"
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))

    with pytest.raises(
        NoContainerEngine, match=r"docker.sock does not answer \(.*refused.*is its service running"
    ):
        find(nowhere)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_one_that_does_not_let_this_user_in(nowhere: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(daemon, "_get", refused)
    with pytest.raises(NoContainerEngine, match="does not let this user in: add the user"):
        find({"DOCKER_HOST": "unix:///var/run/docker.sock"})


@pytest.mark.parametrize(
    "url", ["ssh://root@elsewhere", "tcp://10.0.0.7:2375", "tcp://[2001:db8::1]:1", "nonsense"]
)
def test_engines_of_other_machines_are_none(url: str) -> None:
    with pytest.raises(NoContainerEngine, match="is no container engine of this machine"):
        find({"DOCKER_HOST": url})


def test_what_answers_nonsense_is_none(tmp_path: Path) -> None:
    with answering(tmp_path / "s", [], {}) as url:  # type: ignore[arg-type]
        with pytest.raises(NoContainerEngine, match="does not answer"):
            find({"DOCKER_HOST": url})
