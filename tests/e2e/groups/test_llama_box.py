"""llama-box over two machines: one lends its GPU, the other leads and answers; a stand-in archive from a mirror.

The GPUs are said to be there. What crosses the network between the two is the stand-in's own word.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from support import hosts
from support.archives import ArchiveServer, archive_server
from support.demo import demo_file
from support.engine import InstalledEngine
from support.hosts import Network
from support.llama_box import CUDA, FOLDER, serve_releases
from support.machines import Machine, joined
from support.running import Running, eventually, gpustack

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("e2e-two-hosts"), pytest.mark.timeout(300)]

#: A GPU of each machine has room for about half of a model whose context takes most of the memory.
GPU = {"name": "NVIDIA L4", "vendor": "nvidia", "index": 0, "memory": {"total": "1450MiB"}}
RESOURCES = {"memory": {"total": "700MiB", "used": 0}, "gpu_devices": [GPU]}
#: Tokens whose cache takes 780 MiB: more than there is RAM, and with the rest more than a GPU has.
CONTEXT = 400_000
MODEL = "divided"


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    if why := hosts.why_not():
        pytest.skip(why)
    with hosts.network(2) as made:
        yield made


@pytest.fixture(scope="module")
def mirror(engine: InstalledEngine, net: Network) -> Iterator[ArchiveServer]:
    with archive_server(net.address) as server:
        serve_releases(server, engine)
        yield server


@pytest.fixture(scope="module")
def cluster(place: Path, net: Network, mirror: ArchiveServer) -> Iterator[tuple[Running, dict[str, Machine]]]:
    reserved = {"ram": 0, "vram": 0}
    (place / "machine.yaml").write_text(json.dumps({"resources": RESOURCES, "system_reserved": reserved}))
    flags = ["--disable-worker", "--advertise-address", net.address]
    own = [
        *("--config-file", str(place / "machine.yaml")),
        *("--tools-download-base-url", mirror.url, "--distributed-worker-port-range", "42320-42339"),
    ]
    with (
        gpustack(place / "server", place / "server home", flags) as server,
        joined(server, net, place, flags=own) as machines,
    ):
        yield server, machines


def instance(server: Running) -> dict[str, Any]:
    with server.admin() as client:
        [found] = client.get("/v2/model-instances?page=-1").json()["items"]
    return dict(found)


def test_a_gpu_of_another_worker_is_used(
    cluster: tuple[Running, dict[str, Machine]], mirror: ArchiveServer
) -> None:
    server, machines = cluster
    server.cli(
        *("deploy", str(demo_file("demo")), "--name", MODEL, "--backend", "llama-box", "--timeout", "120"),
        *("--backend-parameter", f"--ctx-size={CONTEXT}", "--backend-parameter", "--gpu-layers=999"),
    )
    one = instance(server)

    assert {each["worker_ip"] for each in one["members"]} == set(machines)
    leader, lender = sorted(one["members"], key=lambda each: each["number"])
    with server.admin() as client:
        key = client.post("/v2/api-keys", json={"name": "test"}).json()["value"]
    answer = httpx.post(
        f"{server.url}/v1/chat/completions",
        headers={"Authorization": f"Bearer {key}"},
        json={"model": MODEL, "messages": [{"role": "user", "content": "What is GPUStack?"}]},
        timeout=60,
    ).json()
    assert "GPUStack" in answer["choices"][0]["message"]["content"]
    assert answer["usage"]["completion_tokens"] > 8
    # Both fetched it into one folder, which they share: once.
    assert mirror.paths().count(f"{FOLDER}/{CUDA}.zip") == 1

    lent, led = (_log(machines[each["worker_ip"]]) for each in (lender, leader))
    assert "rpc server listening" in lent
    assert f"accepted connection from {leader['worker_ip']}" in lent
    assert f"uses the GPU at {lender['worker_ip']}:423" in led
    server.cli("rm", MODEL)
    eventually(lambda: not _items(server), "it is gone from both", seconds=30)


def _items(server: Running) -> list[Any]:
    with server.admin() as client:
        return list(client.get("/v2/model-instances?page=-1").json()["items"])


def _log(machine: Machine) -> str:
    """Return what the engine on a machine has said."""
    found = ""
    for path in machine.data_dir.rglob("*.log"):
        with contextlib.suppress(OSError):
            found += path.read_text(errors="replace")
    return found
