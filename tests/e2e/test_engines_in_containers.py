"""An engine from an image of a real registry, in containers of a real Docker engine: served, killed around, and ended."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from gpustack_backends.llama_cpp.launcher import VERSION
from support.containers import DockerEngine, docker_engine, engine_image, registry, require_docker
from support.running import Running, a_port_range, eventually, free_ports, spawn, wait_ready

pytestmark = [
    pytest.mark.slow,
    pytest.mark.root,
    pytest.mark.xdist_group("e2e-container"),
    pytest.mark.timeout(900),
]

#: llama.cpp as it is, but from an image whose tag is the version; and an engine of somebody's own.
BACKENDS = """
backend_name: llama-cpp
version_configs:
  "{version}": {{image_name: "engines/llama:{{{{version}}}}"}}
  "1.0": {{image_name: "engines/llama:{{{{version}}}}"}}
  "2.0": {{image_name: "engines/llama:{{{{version}}}}"}}
"""
OWN = """
backend_name: own
health_check_path: /health
version_configs:
  one:
    image_name: {image}
    entrypoint: gpustack-llama-server
    run_command: --host {{{{host}}}} --port {{{{port}}}} --model {{{{model_path}}}} --alias {{{{model_name}}}}
    env: {{GREETING: "{{{{model_name}}}} says hello"}}
"""


@dataclass
class World:
    """A registry with images, a Docker engine that has none of them, and a GPUStack."""

    docker: DockerEngine
    stack: Running
    registry_dir: Path
    registry_port: int
    key: str = ""

    def deploy(self, name: str, model: Path, version: str, backend: str = "llama-cpp") -> None:
        words = ("--name", name, "--backend", backend, "--backend-version", version, "--no-wait")
        self.stack.cli("deploy", str(model), *words)

    def instance(self, name: str) -> dict[str, Any]:
        with self.stack.admin() as client:
            items = client.get("/v2/model-instances").json()["items"]
        return next((each for each in items if each["model_name"] == name), {})

    def says(self, name: str, text: str, *, seconds: float = 60) -> None:
        try:
            eventually(lambda: text in self.instance(name).get("state_message", ""), text, seconds=seconds)
        except AssertionError:
            raise AssertionError(f"{text!r} is not in {self.instance(name)}") from None

    def chat(self, name: str) -> dict[str, Any]:
        """Return the answer; nothing where there is none."""
        question = {"model": name, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
        with contextlib.suppress(httpx.HTTPError):
            answer = httpx.post(
                f"{self.stack.url}/v1/chat/completions",
                json=question,
                headers={"Authorization": f"Bearer {self.key}"},
                timeout=30,
            )
            if answer.is_success:
                found: dict[str, Any] = answer.json()
                return found
        return {}

    def serves(self, name: str, *, seconds: float = 90) -> None:
        try:
            eventually(lambda: self.chat(name), f"{name} answers", seconds=seconds)
        except AssertionError:
            log = (self.stack.data_dir / "log" / "worker.log").read_text()[-6000:]
            raise AssertionError(f"{self.instance(name)}\n{log}") from None

    def containers(self, *more: str) -> list[str]:
        return self.docker(
            "ps", "--quiet", "--no-trunc", *more, "--filter", "label=gpustack.instance"
        ).split()

    def worker(self) -> int | None:
        pid: int | None = self.stack.state()["children"]["worker"]["pid"]
        return pid


@pytest.fixture(scope="module")
def world(place: Path) -> Iterator[World]:
    require_docker()
    port, gateway = free_ports(2)
    with docker_engine() as docker:
        image = f"127.0.0.1:{port}/engines/llama"
        with registry(place, port):
            docker("import", engine_image(), f"{image}:{VERSION}", timeout=300)
            docker("import", nothing_in_it(place), f"{image}:1.0")
            for tag in (VERSION, "1.0"):
                docker("push", "--quiet", f"{image}:{tag}", timeout=300)
                docker("rmi", f"{image}:{tag}")
        env = {"DOCKER_HOST": f"unix://{docker.socket}"}
        flags = ["--service-port-range", a_port_range(6)]
        flags += ["--system-default-container-registry", f"127.0.0.1:{port}"]
        stack = spawn(place / "data", place / "home", flags, port=gateway, env=env)
        try:
            made = World(docker, wait_ready(stack), place, port)
            for name, text in (("llama", BACKENDS), ("own", OWN)):
                file = place / f"{name}.yaml"
                file.write_text(text.format(version=VERSION, image=f"{image}:{VERSION}"))
                stack.cli("backends", "apply", str(file))
            made.key = json.loads(stack.cli("keys", "create", "tests", "--json").stdout)["value"]
            yield made
        finally:
            with contextlib.suppress(Exception):
                stack.end()
            stack.cli("stop", check=False)


def nothing_in_it(place: Path) -> Path:
    """Return an archive of a root file system without a program."""
    path = place / "nothing.tar"
    with tarfile.open(path, "w") as archive:
        entry = tarfile.TarInfo("etc/motd")
        entry.size = 2
        archive.addfile(entry, io.BytesIO(b"hi"))
    return path


def test_it_is_pulled_once_its_registry_is_there_and_serves(world: World, tiny_gguf: Path) -> None:
    world.deploy("tiny", tiny_gguf, VERSION)
    away = (
        f"127.0.0.1:{world.registry_port} cannot be reached (connect: connection refused); it is tried again"
    )
    world.says("tiny", away)

    with registry(world.registry_dir, world.registry_port):
        # Killed in the middle: whoever comes next goes on.
        world.says("tiny", "pulling the image", seconds=120)
        if (pid := world.worker()) is not None:
            os.kill(pid, signal.SIGKILL)
        world.serves("tiny", seconds=180)

    answer = world.chat("tiny")
    assert answer["usage"]["completion_tokens"] > 0
    [container] = world.containers()
    inspected = json.loads(world.docker("inspect", container))[0]
    assert inspected["Config"]["Image"] == f"127.0.0.1:{world.registry_port}/engines/llama:{VERSION}"
    instance = world.instance("tiny")
    assert instance["pid"] == inspected["State"]["Pid"]
    assert instance["port"] == int(inspected["Config"]["Cmd"][inspected["Config"]["Cmd"].index("--port") + 1])
    [mounted] = [each for each in inspected["Mounts"] if each["Destination"] == str(tiny_gguf)]
    assert mounted["RW"] is False
    assert "model" in world.stack.cli("logs", "tiny").stdout
    with world.stack.admin() as client:
        [worker] = client.get("/v2/workers").json()["items"]
    assert worker["status"]["container_engine"]["name"].startswith("Docker ")


def test_it_outlives_its_worker_and_is_adopted(world: World) -> None:
    [container] = world.containers()
    before, restarts = world.worker(), world.instance("tiny")["restart_count"]
    assert before is not None
    os.kill(before, signal.SIGKILL)
    killed = time.time()
    assert world.chat("tiny")

    log = world.stack.data_dir / "log" / "worker.log"
    eventually(
        lambda: f"found its engine running as container {container[:12]}" in log.read_text(),
        "adoption",
        seconds=30,
    )
    print(f"adopted {time.time() - killed:.1f} s after the worker was killed")

    assert world.worker() != before
    assert world.chat("tiny")
    assert world.containers() == [container]
    eventually(lambda: world.instance("tiny")["state"] == "running", "it runs", seconds=30)
    assert world.instance("tiny")["restart_count"] == restarts


def test_it_serves_again_after_its_container_engine_was_restarted(world: World) -> None:
    [container] = world.containers()
    restarts = world.instance("tiny")["restart_count"]
    world.docker.stop()
    time.sleep(1.0)
    world.docker.start()

    world.serves("tiny")

    [again] = world.containers("--all")
    assert again != container
    eventually(lambda: world.instance("tiny")["restart_count"] > restarts, "the restart is told", seconds=30)


@pytest.mark.parametrize(
    ("version", "says"),
    [
        ("1.0", "it has no program gpustack-llama-server; name another image"),
        ("2.0", "has no such image or tag; check the name"),
    ],
)
def test_a_bad_image_is_one_line_and_leaves_nothing(
    world: World, tiny_gguf: Path, version: str, says: str
) -> None:
    name = f"bad-{version.replace('.', '-')}"
    with registry(world.registry_dir, world.registry_port):
        world.deploy(name, tiny_gguf, version)
        world.says(name, says)

    assert world.instance(name)["state"] == "error"
    assert len(world.containers("--all")) == 1
    world.stack.cli("rm", name, "--force")


def test_an_engine_of_somebodys_own_serves_beside_it(world: World, tiny_gguf: Path) -> None:
    world.deploy("mine", tiny_gguf, "one", backend="own")

    world.serves("mine")

    assert world.chat("tiny")
    [container] = [
        found
        for each in world.containers()
        if (found := json.loads(world.docker("inspect", each))[0])["Path"] == "gpustack-llama-server"
        and "GREETING=mine says hello" in found["Config"]["Env"]
    ]
    assert container["Args"][0] == "--host"
    world.stack.cli("rm", "mine")
    eventually(lambda: len(world.containers("--all")) == 1, "its container is gone", seconds=30)


def test_stop_ends_containers_too_also_when_nobody_watches(world: World) -> None:
    assert world.containers()
    for name in ("supervisor", "worker"):
        state = world.stack.state()
        pid = state["pid"] if name == "supervisor" else state["children"]["worker"]["pid"]
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert world.containers()

    done = world.stack.cli("stop")

    assert "Ended 1 engine that an earlier crash had left behind." in done.stderr + done.stdout
    assert world.containers("--all") == []
