"""Two machines serve one model that fits on neither: its members talk over the network, and live and end together."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from gpustack.testing import fakes
from support import hosts
from support.hosts import Network
from support.machines import Machine, joined
from support.running import Running, eventually, gpustack, processes_of

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("e2e-two-hosts"), pytest.mark.timeout(300)]

#: Each machine is said to have this much, whatever this one has.
RESOURCES = "resources:\n  memory: {total: 8GiB, used: 0}\n"
PORTS = "42300-42319"
MODEL = "whole"


@dataclass
class Cluster:
    """The server, its two workers by address, an administrator, and a key."""

    server: Running
    net: Network
    machines: dict[str, Machine]
    api: httpx.Client
    key: str

    def instance(self) -> dict[str, Any]:
        [found] = self.api.get("/v2/model-instances?page=-1").json()["items"]
        return dict(found)

    def members(self) -> dict[str, dict[str, Any]]:
        return {each["worker_ip"]: each for each in self.instance()["members"]}

    def follower(self) -> str:
        return next(address for address, each in self.members().items() if each["number"] == 1)

    def wait(self, state: str, seconds: float = 60) -> dict[str, Any]:
        eventually(lambda: self.instance()["state"] == state, f"it is {state}", seconds=seconds)
        return self.instance()

    def ask(self, text: str) -> httpx.Response:
        """Ask the model through the gateway."""
        body = {"model": MODEL, "messages": [{"role": "user", "content": text}]}
        headers = {"Authorization": f"Bearer {self.key}"}
        return httpx.post(f"{self.server.url}/v1/chat/completions", json=body, headers=headers, timeout=30)

    def says(self, text: str) -> str:
        answer = self.ask(text)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["message"]["content"])

    def engines(self, address: str) -> list[psutil.Process]:
        """Return the engines that run on a machine."""
        found, there = [], set(self.machines[address].host.pids())
        for process in processes_of(self.machines[address].data_dir):
            with contextlib.suppress(psutil.Error):
                if process.pid in there and "--served-model-name" in process.cmdline():
                    found.append(process)
        return found

    def worker_process(self, address: str) -> psutil.Process | None:
        """Return the process of the worker on a machine."""
        for pid in self.machines[address].host.pids():
            with contextlib.suppress(psutil.Error):
                if "gpustack.app.child worker" in " ".join((process := psutil.Process(pid)).cmdline()):
                    return process
        return None

    def takeovers(self, address: str) -> int:
        """Return how often a worker on a machine has found an engine running."""
        log = self.machines[address].data_dir / "log" / "worker.log"
        return log.read_text().count("found its engine running")

    def story(self) -> list[tuple[str, str]]:
        number = self.instance()["id"]
        items = self.api.get(f"/v2/model-instance-events?instance_id={number}").json()["items"]
        return [(each["what"], each["message"]) for each in reversed(items)]


@pytest.fixture(scope="module")
def cluster(place: Path) -> Iterator[Cluster]:
    if why := hosts.why_not():
        pytest.skip(why)
    (place / "machine.yaml").write_text(RESOURCES)
    model = fakes.a_model(place)
    env = {"PYTHONPATH": str(fakes.path("fake-engine"))}
    with contextlib.ExitStack() as stack:
        net = stack.enter_context(hosts.network(2))
        # Long enough for a machine whose cable is back to be heard of before its place is given up.
        flags = ["--disable-worker", "--advertise-address", net.address, "--replace-after", "40"]
        server = stack.enter_context(gpustack(place / "server", place / "server home", flags, env=env))
        own = ["--config-file", str(place / "machine.yaml"), "--distributed-worker-port-range", PORTS]
        machines = stack.enter_context(joined(server, net, place, flags=own, env=env))
        api = stack.enter_context(server.admin())
        key = api.post("/v2/api-keys", json={"name": "test"}).json()["value"]
        cluster = Cluster(server, net, machines, api, key)
        server.cli(
            *("deploy", str(model), "--name", MODEL, "--backend", "fake", "--timeout", "200"),
            *("--backend-parameter", "--claim-ram=10GiB", "--backend-parameter", "--first=followers"),
            timeout=220,
        )
        cluster.wait("running")
        yield cluster


def test_both_machines_have_a_member_and_the_leader_answers_for_all(cluster: Cluster) -> None:
    one = cluster.instance()

    assert set(cluster.members()) == {each.address for each in cluster.net.hosts}
    assert [each["number"] for each in one["members"]] == [0, 1]
    assert {each["state"] for each in one["members"]} == {"running"}
    assert one["worker_ip"] == one["members"][0]["worker_ip"]
    assert all(42300 <= port <= 42319 for each in one["members"] for port in each["ports"])
    assert {each["interface"] for each in one["members"]} == {"eth0"}
    assert cluster.says("two words") == "You said: two words (member 1 heard 2 words)"
    assert [len(cluster.engines(each)) for each in cluster.machines] == [1, 1]
    usage = cluster.ask("two words").json()["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] > 0


def test_it_is_told_and_counted_on_both_machines(cluster: Cluster) -> None:
    names = {each["worker_name"] for each in cluster.instance()["members"]}
    explained = cluster.server.cli("explain", MODEL).stdout
    shown = cluster.server.cli("show", MODEL).stdout
    listed = cluster.server.cli("ps").stdout

    assert "listening on" in cluster.server.cli("logs", MODEL).stdout
    assert "member 1 listens on" in cluster.server.cli("logs", MODEL, "--member", "1").stdout
    for name in names:
        assert name in explained
        assert name in shown
        assert name in listed
        told = cluster.api.get(f"/v2/model-instances?worker_id={_worker(cluster, name)['id']}").json()
        assert [each["name"] for each in told["items"]] == [cluster.instance()["name"]]


def test_when_a_member_is_killed_all_start_again(cluster: Cluster) -> None:
    before = {address: cluster.engines(address)[0].pid for address in cluster.machines}
    attempt, restarts = cluster.instance()["attempt"], cluster.instance()["restart_count"]
    os.kill(before[cluster.follower()], signal.SIGKILL)
    eventually(lambda: cluster.instance()["attempt"] > attempt, "the next attempt begins", seconds=30)
    after = cluster.wait("running")

    assert after["restart_count"] == restarts + 1
    said = [message for what, message in cluster.story() if what == "error"]
    follower = cluster.members()[cluster.follower()]["worker_name"]
    assert said[-1].startswith(f"member 1 on {follower} failed: the engine was killed by signal 9")
    for address, pid in before.items():
        assert [each.pid for each in cluster.engines(address)] != [pid]
        assert len(cluster.engines(address)) == 1
    assert cluster.says("hello") == "You said: hello (member 1 heard 1 words)"


def test_members_are_taken_over_when_a_worker_is_killed(cluster: Cluster) -> None:
    before = {address: cluster.engines(address)[0].pid for address in cluster.machines}
    attempt = cluster.instance()["attempt"]
    workers = {address: cluster.worker_process(address) for address in cluster.machines}
    taken = {address: cluster.takeovers(address) for address in cluster.machines}
    for process in workers.values():
        process.kill()
    eventually(
        lambda: all(cluster.worker_process(each) not in (None, workers[each]) for each in workers),
        "the workers are started again",
        seconds=30,
    )
    eventually(
        lambda: all(cluster.takeovers(each) > taken[each] for each in workers),
        "engines are found",
        seconds=30,
    )
    cluster.wait("running")

    assert cluster.says("still") == "You said: still (member 1 heard 1 words)"
    assert {address: cluster.engines(address)[0].pid for address in cluster.machines} == before
    assert cluster.instance()["attempt"] == attempt


def test_a_machine_that_is_cut_off_and_comes_back_keeps_its_member(cluster: Cluster) -> None:
    address = cluster.follower()
    pid, attempt = cluster.engines(address)[0].pid, cluster.instance()["attempt"]
    cluster.machines[address].host.cut()
    try:
        lost = cluster.wait("unreachable", 45)
    finally:
        cluster.machines[address].host.heal()
    cluster.wait("running")

    assert lost["members"][1]["state"] == "unreachable"
    assert lost["members"][0]["state"] == "running"
    assert cluster.engines(address)[0].pid == pid
    assert cluster.instance()["attempt"] == attempt
    # The gateway hears of it a moment later than who asks the API.
    eventually(lambda: cluster.ask("back").status_code == 200, "the gateway hears of it", seconds=5)
    assert cluster.says("back") == "You said: back (member 1 heard 1 words)"


def test_a_machine_without_power_ends_the_rest_and_all_start_anew_with_it(cluster: Cluster) -> None:
    address = cluster.follower()
    [leader] = set(cluster.machines) - {address}
    pid = cluster.engines(leader)[0].pid
    cluster.machines[address].lose_power()
    eventually(lambda: cluster.instance()["state"] == "pending", "its place is given up", seconds=120)
    eventually(lambda: not cluster.engines(leader), "the rest of it ends", seconds=20)
    cluster.machines[address].start()
    cluster.wait("running", 90)

    assert cluster.engines(leader)[0].pid != pid
    assert cluster.says("anew") == "You said: anew (member 1 heard 1 words)"


def test_members_that_cannot_reach_each_other_are_named(cluster: Cluster) -> None:
    address = cluster.follower()
    [leader] = set(cluster.machines) - {address}
    host = cluster.machines[leader].host
    # Nothing comes through to the members' ports of the leader's machine.
    rule = ("iptables", "-A", "INPUT", "-p", "tcp", "--dport", "42300:42319", "-j", "REJECT")
    if host.run(*rule).returncode != 0:
        pytest.skip("iptables does not work here")
    try:
        os.kill(cluster.engines(address)[0].pid, signal.SIGKILL)
        eventually(
            lambda: any("cannot reach worker" in message for _, message in cluster.story()),
            "the pair is named",
            seconds=30,
        )
    finally:
        host.run(*(word.replace("-A", "-D") for word in rule))
    cluster.wait("running", 90)


def test_nothing_is_left_when_it_is_removed(cluster: Cluster) -> None:
    cluster.server.cli("rm", MODEL)
    eventually(
        lambda: not any(cluster.engines(each) for each in cluster.machines), "all members end", seconds=20
    )
    eventually(
        lambda: not cluster.api.get("/v2/model-instances?page=-1").json()["items"],
        "its instance is gone",
        seconds=20,
    )
    for machine in cluster.machines.values():
        assert not list((machine.data_dir / "run" / "instances").glob("*.json"))


def _worker(cluster: Cluster, name: str) -> dict[str, Any]:
    [found] = [each for each in cluster.api.get("/v2/workers").json()["items"] if each["name"] == name]
    return dict(found)
