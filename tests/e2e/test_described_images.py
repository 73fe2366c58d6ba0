"""Images of backends that somebody described, from a real registry in a real Docker engine, beside each other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpustack_backends.llama_cpp.launcher import COMMAND, VERSION
from support.containers import DockerEngine, docker_engine, engine_image, registry, require_docker
from support.running import Running, a_port_range, free_ports, gpustack

pytestmark = [
    pytest.mark.slow,
    pytest.mark.root,
    pytest.mark.xdist_group("e2e-container"),
    pytest.mark.timeout(900),
]

_ARGUMENTS = "--host {{host}} --port {{port}} --model {{model_path}} --alias {{model_name}}"


@pytest.fixture(scope="module")
def engines(place: Path) -> Iterator[tuple[Running, DockerEngine, str]]:
    """A GPUStack, a Docker engine that has no image, and the name of one in a registry."""
    require_docker()
    [port] = free_ports(1)
    image = f"127.0.0.1:{port}/mine/llama:1"
    with docker_engine() as docker, registry(place, port):
        docker("import", engine_image(), image, timeout=300)
        docker("push", "--quiet", image, timeout=300)
        docker("rmi", image)
        env = {"DOCKER_HOST": f"unix://{docker.socket}"}
        flags = ["--service-port-range", a_port_range(6)]
        with gpustack(place / "images data", place / "images home", flags, env=env) as running:
            yield running, docker, image


def described(running: Running, **fields: Any) -> None:
    file = running.home / f"{fields['backend_name']}.yaml"
    file.write_text(yaml.safe_dump(fields))
    running.cli("backends", "apply", str(file))


def test_versions_of_a_backend_serve_from_images_beside_each_other(
    engines: tuple[Running, DockerEngine, str], tiny_gguf: Path
) -> None:
    running, docker, image = engines
    described(
        running,
        backend_name="boxed",
        version_configs={
            "command": {
                "image_name": image,
                "run_command": f"{COMMAND} {_ARGUMENTS}",
                "env": {"WHO": "{{model_name}}"},
            },
            "entry": {
                "image_name": image,
                "entrypoint": f"/usr/local/bin/{COMMAND}",
                "run_command": _ARGUMENTS,
            },
        },
    )
    described(running, backend_name="llama-cpp", version_configs={VERSION: {"image_name": image}})
    words = ("deploy", str(tiny_gguf), "--name")
    running.cli(*words, "one", "--backend", "boxed", "--backend-version", "command", timeout=300)
    running.cli(*words, "two", "--backend", "boxed", "--backend-version", "entry", timeout=300)
    running.cli(*words, "three", "--backend", "llama-cpp", timeout=300)

    for name in ("one", "two", "three"):
        body = {"model": name, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
        with running.admin() as client:
            answer = client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"]["completion_tokens"] > 0
    inspected = json.loads(docker("inspect", *docker("ps", "--quiet").split()))
    assert {each["Config"]["Image"] for each in inspected} == {image}
    assert len(inspected) == 3
    assert any("WHO=one" in each["Config"]["Env"] for each in inspected)
