"""Three machines, each a network namespace of its own, serve four models: one is cut off and healed, one loses its power."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from support import hosts
from support.engine import InstalledEngine
from support.load import Failure, Kill, Traffic, load
from support.machines import Machine, joined
from support.running import Running, eventually, gpustack, processes_of

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("e2e-three-machines")]

MODELS = ("red", "green", "blue", "grey")
COPIES = 2 * len(MODELS)
#: Seconds after which an instance of a worker that is gone is placed anew, with those until it is missed.
_GIVEN_UP = 60 + 20


@dataclass
class Cluster:
    """The server, its workers by address, and an administrator's key."""

    server: Running
    machines: dict[str, Machine]
    api: httpx.Client
    key: str

    def worker(self, address: str) -> dict[str, Any]:
        [found] = [each for each in self.api.get("/v2/workers").json()["items"] if each["ip"] == address]
        return dict(found)

    def instances(self) -> dict[int, dict[str, Any]]:
        return {each["id"]: each for each in self.api.get("/v2/model-instances?page=-1").json()["items"]}

    def on(self, address: str) -> dict[int, dict[str, Any]]:
        return {number: each for number, each in self.instances().items() if each["worker_ip"] == address}

    def running(self) -> int:
        return sum(each["state"] == "running" for each in self.instances().values())

    def wait_whole(self, seconds: float = 90) -> None:
        eventually(lambda: self.running() == COPIES, "all copies run", seconds=seconds)

    def wait_state(self, address: str, state: str, seconds: float = 45) -> None:
        eventually(lambda: self.worker(address)["state"] == state, f"{address} is {state}", seconds=seconds)

    def story(self, instance: int) -> list[tuple[str, str]]:
        """Return what happened to an instance and why, the oldest first."""
        items = self.api.get(f"/v2/model-instance-events?instance_id={instance}").json()["items"]
        return [(each["what"], each["message"]) for each in reversed(items)]

    def explained(self, model: str) -> str:
        return self.server.cli("explain", model).stdout

    def engines(self, address: str) -> int:
        """Return how many engines run on a machine."""
        found = 0
        for process in processes_of(self.machines[address].data_dir):
            with contextlib.suppress(psutil.Error):
                found += "llama-server" in " ".join(process.cmdline()) and process.pid in self._pids(address)
        return found

    def _pids(self, address: str) -> list[int]:
        return self.machines[address].host.pids()

    @contextlib.contextmanager
    def asked(self) -> Iterator[list[Traffic]]:
        """Have every model asked all the time."""
        with contextlib.ExitStack() as stack:
            traffic = [
                stack.enter_context(load(self.server.url, self.key, name, rate=8, streams=1, tokens=100))
                for name in MODELS
            ]
            eventually(lambda: all(each.answered > 10 for each in traffic), "the load runs", seconds=60)
            yield traffic
            seen = [each.answered for each in traffic]
            eventually(
                lambda: all(each.answered > before + 10 for each, before in zip(traffic, seen, strict=True)),
                "the load runs again",
                seconds=60,
            )


@pytest.fixture(scope="module")
def cluster(place: Path, engine: InstalledEngine, tiny_gguf: Path) -> Iterator[Cluster]:
    if why := hosts.why_not():
        pytest.skip(why)
    with contextlib.ExitStack() as stack:
        net = stack.enter_context(hosts.network(3))
        flags = ["--disable-worker", "--advertise-address", net.address]
        server = stack.enter_context(gpustack(place / "server", place / "server home", flags))
        machines = stack.enter_context(joined(server, net, place, engine, ports=12))
        api = stack.enter_context(server.admin())
        for name in MODELS:
            words = [str(tiny_gguf), "--name", name, "--replicas", "2", "--timeout", "90"]
            slots = ("--parallel=8", "--ctx-size=8192", "--threads=1")
            server.cli("deploy", *words, *(word for slot in slots for word in ("--backend-parameter", slot)))
        key = api.post("/v2/api-keys", json={"name": "load"}).json()["value"]
        cluster = Cluster(server, machines, api, key)
        cluster.wait_whole()
        yield cluster


def _unexplained(traffic: list[Traffic], outages: list[Kill]) -> list[Failure]:
    return [
        failure
        for each in traffic
        for failure in each.report.failures
        if not any(outage.explains(failure) for outage in outages)
    ]


def test_every_machine_serves_and_no_model_depends_on_one(cluster: Cluster) -> None:
    places = Counter((each["model_name"], each["worker_ip"]) for each in cluster.instances().values())

    assert {address for _, address in places} == set(cluster.machines)
    assert Counter(name for name, _ in places) == dict.fromkeys(MODELS, 2)


def test_one_is_cut_off_and_healed_and_one_loses_its_power(cluster: Cluster) -> None:
    cut, killed, _ = sorted(cluster.machines)
    before = cluster.on(cut)
    outages = []
    with cluster.asked() as traffic:
        began = time.monotonic()
        cluster.machines[cut].host.cut()
        outages.append(Kill(what="engine", began=began, gone=time.monotonic()))
        try:
            cluster.wait_state(cut, "unreachable")
            assert 8 < time.monotonic() - began < 30
            told = {each["model_name"]: cluster.explained(each["model_name"]) for each in before.values()}
        finally:
            cluster.machines[cut].host.heal()
        cluster.wait_state(cut, "ready")
        cluster.wait_whole()
        after = cluster.on(cut)

        began = time.monotonic()
        cluster.machines[killed].lose_power()
        outages.append(Kill(what="engine", began=began, gone=time.monotonic()))
        cluster.wait_state(killed, "unreachable")
        cluster.machines[killed].start()
        cluster.wait_state(killed, "ready")
        cluster.wait_whole()

    same = ("worker_id", "pid", "restart_count")
    assert {number: [each[name] for name in same] for number, each in before.items()} == {
        number: [each[name] for name in same] for number, each in after.items()
    }, "recognised, not restarted"
    unexplained = _unexplained(traffic, outages)
    assert not unexplained
    name = cluster.worker(cut)["name"]
    for model, said in told.items():
        assert f"is lost from sight on worker {name}," in said
        assert "it is placed elsewhere at" in said
        assert "lost from sight" not in cluster.explained(model)
    for number, each in before.items():
        (lost, why), (back, _) = cluster.story(number)[-2:]
        assert (lost, back) == ("unreachable", "running")
        assert "no sign of life" in why
        assert each["worker_name"] in cluster.server.cli("events", each["model_name"]).stdout


def test_a_cut_of_5_s_is_no_news(cluster: Cluster) -> None:
    address = min(cluster.machines)
    stories = {number: len(cluster.story(number)) for number in cluster.instances()}
    cluster.machines[address].host.cut()
    try:
        time.sleep(5)
    finally:
        cluster.machines[address].host.heal()
    time.sleep(20)

    assert cluster.worker(address)["state"] == "ready"
    assert {number: len(cluster.story(number)) for number in cluster.instances()} == stories


@pytest.mark.timeout(600)
def test_what_was_placed_elsewhere_meanwhile_ends_where_it_was(cluster: Cluster) -> None:
    cut = min(cluster.machines)
    before = cluster.on(cut)
    cluster.machines[cut].host.cut()
    try:
        cluster.wait_state(cut, "unreachable")
        eventually(
            lambda: not cluster.on(cut) and cluster.running() == COPIES,
            "its copies run elsewhere",
            seconds=_GIVEN_UP + 90,
        )
        assert cluster.engines(cut) == len(before), "it serves whoever reaches it"
    finally:
        cluster.machines[cut].host.heal()
    cluster.wait_state(cut, "ready")
    eventually(lambda: cluster.engines(cut) == len(cluster.on(cut)), "the older ones end", seconds=60)

    assert cluster.running() == COPIES
    assert not cluster.on(cut)
