"""llama-box from a mirror of its releases to a chat: a stand-in archive, since the releases cannot be reached here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.archives import ArchiveServer, archive_server
from support.demo import demo_file
from support.engine import InstalledEngine
from support.llama_box import DYNAMIC, FOLDER, STATIC, VERSION, serve_releases
from support.running import Running, a_port_range, eventually, gpustack

pytestmark = [pytest.mark.xdist_group("e2e-llama-box"), pytest.mark.slow]


@pytest.fixture(scope="module")
def mirror(engine: InstalledEngine) -> Iterator[ArchiveServer]:
    with archive_server() as server:
        serve_releases(server, engine)
        yield server


@pytest.fixture(scope="module", params=[False, True], ids=["dynamic", "static"])
def stack(
    place: Path, engine: InstalledEngine, mirror: ArchiveServer, request: pytest.FixtureRequest
) -> Iterator[Running]:
    """A GPUStack with a folder for engines of its own, which fetches its tools from the mirror."""
    name = "static" if request.param else "dynamic"
    flags = ["--tools-download-base-url", mirror.url, "--service-port-range", a_port_range(4)]
    env = {"GPUSTACK_DISABLE_DYNAMIC_LINK_LLAMA_BOX": str(request.param).lower()}
    mirror.asked.clear()
    with gpustack(place / f"{name} data", place / f"{name} home", flags, env=env) as running:
        running.home.joinpath("chat.gguf").symlink_to(demo_file("demo"))
        yield running


def instance(stack: Running, model: str) -> dict[str, Any]:
    with stack.admin() as client:
        items = client.get("/v2/model-instances").json()["items"]
    return next(each for each in items if each["model_name"] == model)


def test_a_model_is_deployed_and_asked(stack: Running, mirror: ArchiveServer) -> None:
    stack.cli("deploy", "./chat.gguf", "--name", "boxed", "--backend", "llama-box")
    key = json.loads(stack.cli("keys", "create", "box", "--json").stdout)["value"]
    build = STATIC if "static" in str(stack.data_dir) else DYNAMIC

    answer = httpx.post(
        f"{stack.url}/v1/chat/completions",
        headers={"Authorization": f"Bearer {key}"},
        json={"model": "boxed", "messages": [{"role": "user", "content": "What is GPUStack?"}]},
        timeout=60,
    ).json()

    assert "GPUStack" in answer["choices"][0]["message"]["content"]
    assert answer["usage"]["completion_tokens"] > 8
    assert mirror.paths() == [f"{FOLDER}/sha256sum.txt", f"{FOLDER}/{build}.zip"]
    listed = json.loads(stack.cli("backends", "list", "--json").stdout)
    (here,) = [each["installed_here"] for each in listed if each["backend_name"] == "llama-box"]
    assert here == [VERSION]
    assert "llama-box" in stack.cli("ps").stdout


def test_a_version_that_does_not_exist_is_one_line_and_not_tried_again(
    stack: Running, mirror: ArchiveServer
) -> None:
    deploy = ("deploy", "./chat.gguf", "--name", "never", "--backend", "llama-box", "--no-wait")
    stack.cli(*deploy, "--backend-version", "v0.0.99")

    eventually(lambda: instance(stack, "never")["state"] == "error", "it says that it cannot", seconds=30)

    message = instance(stack, "never")["state_message"]
    assert f"there is no {'llama-box' if 'static' in str(stack.data_dir) else 'dl-llama-box'}" in message
    assert "choose another version, or check --tools-download-base-url" in message
    asked = len(mirror.asked)
    stack.cli("rm", "never")
    assert len(mirror.asked) == asked
