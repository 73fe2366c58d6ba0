"""Two machines, each a network namespace of its own, serve one model for a server on a third."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from gpustack.dataplane.door import instance_credential
from support import hosts
from support.engine import InstalledEngine
from support.machines import Machine, joined
from support.running import Running, eventually, gpustack, processes_of, spawn

pytestmark = pytest.mark.xdist_group("e2e-two-machines")

#: Prints what a machine gets to see of addresses with credentials: the status of each, or the kind of error.
_LOOK = """
import json, sys, httpx
for url, credential in json.loads(sys.argv[1]):
    headers = {"Authorization": f"Bearer {credential}"} if credential else {}
    try:
        print(httpx.get(url, headers=headers, timeout=5, trust_env=False).status_code)
    except httpx.HTTPError as error:
        print(type(error).__name__)
"""


@dataclass
class Cluster:
    """The server, and its two workers by address."""

    server: Running
    machines: dict[str, Machine]
    api: httpx.Client

    def workers(self) -> dict[str, dict[str, Any]]:
        return {each["ip"]: each for each in self.api.get("/v2/workers").json()["items"]}

    def instances(self) -> dict[str, dict[str, Any]]:
        """Return the running instances by the address of their worker."""
        items = self.api.get("/v2/model-instances").json()["items"]
        return {each["worker_ip"]: each for each in items if each["state"] == "running"}

    def chat(self) -> httpx.Response:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
        return self.api.post("/v1/chat/completions", json=body)

    def url_for_others(self) -> str:
        said = self.server.cli("workers", "join-command", "--json").stdout
        return str(json.loads(said)["server_url"])

    def log_length(self, instance: dict[str, Any]) -> int:
        return len(self.api.get(f"/v2/model-instances/{instance['id']}/logs").content)


@pytest.fixture(scope="module")
def cluster(place: Path, engine: InstalledEngine, tiny_gguf: Path) -> Iterator[Cluster]:
    if why := hosts.why_not():
        pytest.skip(why)
    with contextlib.ExitStack() as stack:
        net = stack.enter_context(hosts.network(2))
        flags = ["--disable-worker", "--advertise-address", net.address]
        server = stack.enter_context(gpustack(place / "cluster server", place / "cluster home", flags))
        # As a person would: what the server prints is run on the other machine.
        machines = stack.enter_context(joined(server, net, place, engine))
        api = stack.enter_context(server.admin())
        server.cli("deploy", str(tiny_gguf), "--name", "tiny", "--replicas", "2")
        cluster = Cluster(server, machines, api)
        eventually(lambda: len(cluster.instances()) == 2, "both copies run", seconds=60)
        yield cluster


def test_both_joined_by_what_the_server_prints_and_run_a_copy_each(cluster: Cluster) -> None:
    workers = cluster.workers()

    assert set(workers) == set(cluster.machines) == set(cluster.instances())
    assert {each["state"] for each in workers.values()} == {"ready"}
    # Both machines say the same name of themselves.
    first, second = sorted(each["name"] for each in workers.values())
    assert second == f"{first}-1"
    for worker in workers.values():
        assert worker["port"] == 10150
        assert worker["installed_versions"]["llama-cpp"]
        assert worker["catalogue"]["backends"]
    listed = cluster.server.cli("workers").stdout
    for address, worker in workers.items():
        assert f"{address}:10150" in listed
        assert worker["version"] in listed
    assert "llama-cpp" in listed
    for machine in cluster.machines.values():
        kept = machine.data_dir / "worker" / "credential"
        assert kept.stat().st_mode & 0o777 == 0o600
        assert not (machine.data_dir / "token").exists()


def test_requests_reach_the_engines_of_both(cluster: Cluster) -> None:
    before = {address: cluster.log_length(each) for address, each in cluster.instances().items()}

    def both_wrote() -> bool:
        assert cluster.chat().status_code == 200
        return all(
            cluster.log_length(cluster.instances()[address]) > length for address, length in before.items()
        )

    # Which one is asked is left to chance.
    eventually(both_wrote, "both engines have written about requests", seconds=30)


def test_engines_are_reached_by_the_door_alone_and_with_its_own_credential(cluster: Cluster) -> None:
    (here, mine), (there, other) = cluster.instances().items()
    asking = cluster.machines[here].host
    token = (cluster.machines[there].data_dir / "worker" / "door_token").read_text().strip()
    door = f"http://{there}:10150/instances/{other['id']}/v1/models"

    looks = [
        (f"http://{there}:{other['port']}/v1/models", "", "ConnectError"),
        (door, "", "401"),
        (door, "wrong", "401"),
        (door, token, "401"),
        (door, instance_credential(token, int(mine["id"]) + 1000), "401"),
        (door, instance_credential(token, int(other["id"])), "200"),
        (f"http://{there}:10150/healthz", "", "200"),
        (f"http://{there}:10150/serveLogs/{other['id']}", "", "401"),
    ]
    asked = json.dumps([look[:2] for look in looks])
    assert asking.run(sys.executable, "-c", _LOOK, asked).stdout.split() == [look[2] for look in looks]


def _restarted(cluster: Cluster, address: str, before: dict[str, Any]) -> bool:
    after = cluster.instances().get(address)
    return after is not None and after["pid"] != before["pid"]


def test_one_machine_loses_its_power_and_comes_back(cluster: Cluster) -> None:
    (here, other), (there, gone) = sorted(cluster.instances().items())
    cluster.machines[there].lose_power()

    assert [cluster.chat().status_code for _ in range(6)] == [200] * 6

    # Without the token: it has a credential of its own.
    cluster.machines[there].start()
    eventually(lambda: _restarted(cluster, there, gone), "its copy runs again", seconds=60)
    assert cluster.workers()[there]["id"] == gone["worker_id"]
    # It serves: it is the only one now.
    cluster.machines[here].lose_power()
    assert [cluster.chat().status_code for _ in range(3)] == [200] * 3
    cluster.machines[here].start()
    eventually(lambda: _restarted(cluster, here, other), "the other copy runs again", seconds=60)


@pytest.mark.slow
def test_a_cut_cable_is_noticed_and_healed_without_a_restart(cluster: Cluster) -> None:
    (cut, before), (_, _) = sorted(cluster.instances().items())
    machine = cluster.machines[cut]
    engine = psutil.Process(before["pid"])
    machine.host.cut()
    began = time.monotonic()
    try:
        assert [cluster.chat().status_code for _ in range(5)] == [200] * 5
        eventually(
            lambda: cluster.workers()[cut]["state"] == "unreachable", "the worker is missed", seconds=45
        )
        assert time.monotonic() - began > 10
        assert [cluster.chat().status_code for _ in range(5)] == [200] * 5
    finally:
        machine.host.heal()
    eventually(lambda: cluster.workers()[cut]["state"] == "ready", "the worker is back", seconds=45)
    eventually(lambda: len(cluster.instances()) == 2, "both copies serve", seconds=45)
    after = cluster.instances()[cut]
    assert (after["id"], after["pid"], after["restart_count"]) == (
        before["id"],
        before["pid"],
        before["restart_count"],
    )
    assert engine.is_running()


@pytest.mark.slow
def test_a_machine_without_power_for_long_is_missed_and_serves_again(cluster: Cluster) -> None:
    (lost, _), (_, _) = sorted(cluster.instances().items())
    cluster.machines[lost].lose_power()
    eventually(lambda: cluster.workers()[lost]["state"] == "unreachable", "the worker is missed", seconds=45)
    eventually(lambda: lost not in cluster.instances(), "its copy does not count as running", seconds=45)
    assert [cluster.chat().status_code for _ in range(3)] == [200] * 3

    cluster.machines[lost].start()
    eventually(lambda: cluster.workers()[lost]["state"] == "ready", "the worker is back", seconds=45)

    def states() -> list[str]:
        return [each["state"] for each in cluster.api.get("/v2/model-instances").json()["items"]]

    eventually(lambda: states() == ["running"] * 2, "two copies run, wherever", seconds=60)
    assert cluster.chat().status_code == 200


def test_a_worker_that_says_it_is_at_loopback_is_told_what_to_say(cluster: Cluster, place: Path) -> None:
    host = next(iter(cluster.machines.values())).host
    flags = ["--server-url", cluster.url_for_others(), "--advertise-address", "127.0.0.1"]
    env = {"GPUSTACK_TOKEN": (cluster.server.data_dir / "token").read_text()}
    running = spawn(place / "lost", place / "lost home", flags, env=env, prefix=host.prefix)
    output, _ = running.process.communicate(timeout=60)

    assert running.process.returncode == 1
    assert "--advertise-address" in output.decode()
    assert host.address in output.decode()


def test_a_worker_with_a_wrong_token_ends_with_a_line(cluster: Cluster, place: Path) -> None:
    host = next(iter(cluster.machines.values())).host
    flags = ["--server-url", cluster.url_for_others()]
    running = spawn(
        place / "stranger",
        place / "stranger home",
        flags,
        env={"GPUSTACK_TOKEN": "wrong"},
        prefix=host.prefix,
    )
    output, _ = running.process.communicate(timeout=60)

    [line] = [each for each in output.decode().splitlines() if each.startswith("Error: ")]
    assert running.process.returncode == 1
    assert "does not accept the token" in line
    assert "gpustack workers join-command" in line
    assert not processes_of(place / "stranger")


def test_a_worker_without_a_token_is_told_every_way(cluster: Cluster, place: Path) -> None:
    host = next(iter(cluster.machines.values())).host
    flags = ["--server-url", cluster.url_for_others()]
    running = spawn(place / "unasked", place / "unasked home", flags, prefix=host.prefix)
    output, _ = running.process.communicate(timeout=60)

    assert running.process.returncode == 1
    for way in ("--token-file", "GPUSTACK_TOKEN", "token_file", "gpustack workers join-command"):
        assert way in output.decode()
