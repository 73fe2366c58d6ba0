"""A private Ray over two machines: its head beside the leader, on the ports of the reference page, for one instance alone."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from gpustack.testing import fakes
from support import hosts
from support.machines import Machine, joined
from support.ray import install_ray, plugin_path
from support.running import Running, eventually, gpustack

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("e2e-ray"), pytest.mark.timeout(900)]

RESOURCES = "resources:\n  memory: {total: 8GiB, used: 0}\n"
HEAD = {40096, 40097, 8265}
NODE = {40098, 40099, 40100, 40101, 52365, 40103}


@dataclass
class Cluster:
    """The server, its two workers by address, and an administrator with a key."""

    server: Running
    machines: dict[str, Machine]
    api: httpx.Client
    key: str
    bin_dir: Path
    #: Of other runs, which may have been killed.
    folders: set[Path]

    def instance(self) -> dict[str, Any]:
        [found] = self.api.get("/v2/model-instances?page=-1").json()["items"]
        return dict(found)

    def ask(self, text: str) -> dict[str, Any]:
        body = {"model": "parts", "messages": [{"role": "user", "content": text}]}
        headers = {"Authorization": f"Bearer {self.key}"}
        url = f"{self.server.url}/v1/chat/completions"
        answer = httpx.post(url, json=body, headers=headers, timeout=60)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def ray(self, address: str) -> list[psutil.Process]:
        """Return the processes of Ray on a machine."""
        found = []
        for pid in self.machines[address].host.pids():
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                words = " ".join(process.cmdline())
                if process.status() != psutil.STATUS_ZOMBIE and ("/ray/" in words or "ray::" in words):
                    found.append(process)
        return found


@pytest.fixture(scope="module")
def cluster(place: Path) -> Iterator[Cluster]:
    if why := hosts.why_not():
        pytest.skip(why)
    bin_dir = install_ray()
    folders = set(Path("/tmp").glob("gpustack-ray-*"))
    (place / "machine.yaml").write_text(RESOURCES)
    env = {"PYTHONPATH": str(plugin_path(place / "plugins"))}
    with contextlib.ExitStack() as stack:
        net = stack.enter_context(hosts.network(2))
        flags = ["--disable-worker", "--advertise-address", net.address]
        server = stack.enter_context(gpustack(place / "server", place / "server home", flags, env=env))
        own = ["--config-file", str(place / "machine.yaml"), "--bin-dir", str(bin_dir)]
        machines = stack.enter_context(joined(server, net, place, flags=own, env=env))
        api = stack.enter_context(server.admin())
        key = api.post("/v2/api-keys", json={"name": "test"}).json()["value"]
        model = str(fakes.a_model(place))
        server.cli(
            "deploy", model, "--name", "parts", "--backend", "ray-members", "--timeout", "400", timeout=420
        )
        yield Cluster(server, machines, api, key, bin_dir, folders)


def test_actors_on_both_machines_answer(cluster: Cluster) -> None:
    answer = cluster.ask("three small words")

    said = "; ".join(f"{address} heard 3 words" for address in sorted(cluster.machines))
    assert answer["choices"][0]["message"]["content"] == said
    assert answer["usage"]["prompt_tokens"] == 3
    one = cluster.instance()
    leader, follower = one["members"]
    number = one["id"]
    story = cluster.api.get(f"/v2/model-instance-events?instance_id={number}").json()["items"]
    assert set(leader["ports"]) >= HEAD | NODE, (one["attempt"], story)
    assert set(follower["ports"]) >= NODE, (one["attempt"], story)
    assert not set(follower["ports"]) & HEAD


def test_nobody_gets_in_without_the_token(cluster: Cluster) -> None:
    leader = cluster.instance()["members"][0]
    host = cluster.machines[leader["worker_ip"]].host
    python = (cluster.bin_dir / "ray_2.60.0").resolve().parent / "python"
    code = f"import ray; ray.init('{leader['host']}:40096', log_to_driver=False); print('inside')"
    done = subprocess.run(
        [*host.prefix, str(python), "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env={
            "PATH": "/usr/bin:/bin",
            "HOME": str(cluster.server.home),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": "0" * 64,
        },
    )

    assert done.returncode != 0
    assert "inside" not in done.stdout


def test_when_a_node_dies_all_start_again(cluster: Cluster) -> None:
    before = cluster.instance()
    follower = before["members"][1]["worker_ip"]
    [raylet] = [each for each in cluster.ray(follower) if each.name() == "raylet"]
    raylet.kill()
    eventually(lambda: cluster.instance()["attempt"] > before["attempt"], "all start again", seconds=60)
    eventually(lambda: cluster.instance()["state"] == "running", "it runs", seconds=240)

    assert len(cluster.ask("again")["choices"][0]["message"]["content"].split(";")) == 2


def test_nothing_of_ray_is_left_when_it_is_removed(cluster: Cluster) -> None:
    assert all(cluster.ray(each) for each in cluster.machines)
    cluster.server.cli("rm", "parts")
    eventually(lambda: not any(cluster.ray(each) for each in cluster.machines), "Ray ends", seconds=40)

    assert set(Path("/tmp").glob("gpustack-ray-*")) <= cluster.folders, "nor its sockets"
