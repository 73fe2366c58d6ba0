"""Our image, built from the Dockerfile by a real Docker engine without a registry: it starts, deploys and chats."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from gpustack_backends.llama_cpp.launcher import VERSION
from support.containers import Docker, build_image, docker_engine, require_docker, served, wheels
from support.running import a_port_range, eventually, free_ports

# The first test waits for the image, and where nothing is cached for what it is made of.
pytestmark = [pytest.mark.xdist_group("e2e-container"), pytest.mark.root, pytest.mark.timeout(900)]

#: Seconds that `docker stop` gives it; two busy cores are slow.
GRACE = 60
PATIENCE = 120


@dataclass
class Container:
    """A container of GPUStack with its volume; commands run in it as a user would run them."""

    docker: Docker
    image: str
    links: str
    models: Path
    port: int
    flags: list[str]
    name: str = "gpustack-1"
    key: str = ""

    def run(self) -> None:
        self.docker(
            *("run", "--detach", "--name", self.name, "--hostname", "box", "--network", "host"),
            *("--health-interval", "1s", "--volume", "data:/var/lib/gpustack"),
            *("--volume", f"{self.models}:/models:ro"),
            *("--env", "PIP_NO_INDEX=1", "--env", f"PIP_FIND_LINKS={self.links}"),
            *("--env", "GPUSTACK_DISABLE_UPDATE_CHECK=true"),
            *(self.image, "start", "--port", str(self.port), "--api-port", "0", *self.flags),
        )
        self.wait_ready()

    def replace(self, name: str) -> None:
        """Remove the container and run a new one on its volume."""
        self.docker("rm", "--force", self.name)
        self.name = name
        self.run()

    def wait_ready(self) -> None:
        try:
            eventually(lambda: self.get("/readyz") == httpx.codes.OK, "it is ready", seconds=PATIENCE)
        except AssertionError:
            raise AssertionError(self.docker("logs", self.name)) from None

    def get(self, path: str) -> int:
        """Return the status of the answer; 0 when there is none."""
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"http://127.0.0.1:{self.port}{path}", timeout=30).status_code
        return 0

    def deploy(self, file: str) -> None:
        self.gpustack("deploy", file, "--name", "tiny")
        self.key = json.loads(self.gpustack("keys", "create", "tests", "--json"))["value"]

    def chats(self) -> bool:
        question = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
        with contextlib.suppress(httpx.HTTPError):
            answer = httpx.post(
                f"http://127.0.0.1:{self.port}/v1/chat/completions",
                json=question,
                headers={"Authorization": f"Bearer {self.key}"},
                timeout=30,
            )
            return answer.is_success and answer.json()["choices"][0]["message"]["role"] == "assistant"
        return False

    def wait_chats(self) -> None:
        try:
            eventually(self.chats, "the model answers", seconds=PATIENCE)
        except AssertionError:
            raise AssertionError(self.gpustack("events", "tiny")) from None

    def gpustack(self, *args: str) -> str:
        return self.docker("exec", self.name, "gpustack", *args)

    def sh(self, script: str) -> str:
        return self.docker("exec", self.name, "sh", "-c", script)

    def inspect(self) -> Any:
        return json.loads(self.docker("inspect", self.name))[0]["State"]

    def instance(self) -> Any:
        return json.loads(self.gpustack("ps", "--json"))[0]

    def status(self) -> Any:
        return json.loads(self.docker("exec", self.name, "sh", "-c", "gpustack status --json || true"))

    def zombies(self) -> list[str]:
        states = self.sh("cat /proc/[0-9]*/stat 2>/dev/null || true")
        return re.findall(r"^\d+ \(.*\) Z .*$", states, re.MULTILINE)


@pytest.fixture(scope="module")
def container(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    """The image, run once, with a model that was deployed in it."""
    require_docker()
    port, worker_port = free_ports(2)
    flags = ["--worker-port", str(worker_port), "--service-port-range", a_port_range(6)]
    with served(wheels(f"xllamacpp=={VERSION}")) as links, docker_engine() as docker:
        image = build_image(docker, links, tmp_path_factory.mktemp("image"))
        made = Container(docker, image, links, tiny_gguf.parent, port, flags)
        made.run()
        made.deploy(f"/models/{tiny_gguf.name}")
        yield made


def test_a_model_answers(container: Container) -> None:
    assert container.chats()
    said = container.gpustack("chat", "tiny", "--once", "Hello", "--max-tokens", "4")
    assert said


def test_the_engine_says_that_it_is_healthy(container: Container) -> None:
    eventually(lambda: container.inspect()["Health"]["Status"] == "healthy", "healthy", seconds=PATIENCE)


def test_it_runs_as_a_user_of_its_own(container: Container) -> None:
    owners = container.sh("stat --format %u /proc/[0-9]* 2>/dev/null || true").split()
    assert set(owners) == {"10150"}


def test_the_image_carries_no_compiler_and_nothing_of_its_builder(container: Container) -> None:
    assert not container.sh("command -v gcc cc c++ make pip || true")
    assert not container.sh("ls /build /source /wheels /etc/pip.conf /run/secrets 2>/dev/null || true")
    assert container.links not in container.docker("history", "--no-trunc", container.image)


@pytest.mark.slow
def test_a_killed_worker_leaves_no_zombie_and_the_engine(container: Container) -> None:
    engine = container.instance()["pid"]
    worker = container.status()["children"]["worker"]["pid"]
    container.sh(f"kill -9 {worker}; (sleep 0 & exec true)")
    assert container.chats(), "the engine serves on"
    eventually(
        lambda: (now := container.status())["ready"] and now["children"]["worker"]["pid"] != worker,
        "another worker",
        seconds=PATIENCE,
    )
    assert container.instance()["pid"] == engine
    container.sh(f"kill -9 {engine}")
    container.wait_chats()
    assert container.instance()["pid"] != engine
    eventually(lambda: not container.zombies(), "no zombies")


@pytest.mark.slow
def test_a_killed_supervisor_is_back_in_the_same_container(container: Container) -> None:
    engine = container.instance()["pid"]
    supervisor = container.status()["pid"]
    assert supervisor != 1
    container.sh(f"kill -9 {supervisor}")
    container.wait_ready()
    container.wait_chats()
    assert container.instance()["pid"] == engine
    eventually(lambda: not container.zombies(), "no zombies")


def test_docker_stop_ends_it_cleanly_and_the_volume_outlives_the_container(container: Container) -> None:
    container.docker("stop", "--time", str(GRACE), container.name)
    state = container.inspect()
    assert (state["ExitCode"], state["OOMKilled"]) == (0, False)
    container.replace("gpustack-2")
    container.wait_chats()


@pytest.mark.slow
def test_what_docker_killed_comes_back(container: Container) -> None:
    container.docker("kill", container.name)
    assert container.inspect()["ExitCode"] == 137
    container.docker("start", container.name)
    container.wait_ready()
    container.wait_chats()
    eventually(lambda: not container.zombies(), "no zombies")


def test_a_wrong_option_ends_it_with_one_line(container: Container) -> None:
    said = container.docker("run", "--rm", container.image, "start", "--port", "none", check=False)
    # Docker's own words about the machine, as where nothing forwarded packets before its engine started.
    (line,) = (line for line in said.splitlines() if not line.startswith("WARNING: "))
    assert line.startswith("Error: --port 'none'")
