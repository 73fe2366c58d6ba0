"""A fleet that is only described joins a real server, which takes its workers and their GPUs for what they say."""

from __future__ import annotations

from gpustack.schemas import Heartbeat
from gpustack.testing.fleet import fleet
from support.api import Api

GIB = 1 << 30
TEXT = """
workers:
  - name: big
    count: 3
    labels: {zone: a}
    gpus: [{name: NVIDIA H100, memory: 80GiB, count: 4, used: 2GiB, linked: 2, nodes: 2}]
  - {name: plain, cores: 8, ram: 32GiB}
"""


async def test_its_workers_join_and_are_listed_with_their_gpus(api: Api) -> None:
    described = fleet(TEXT)
    for _ in range(2):  # again, as after a lost answer
        for worker in described:
            body = worker.registration().model_dump(mode="json")
            answer = await api.admin.post("/v2/workers", json=body)
            assert answer.status_code == 201, answer.text

    workers = {each["name"]: each for each in (await api.admin.get("/v2/workers")).json()["items"]}
    gpus = (await api.admin.get("/v2/gpu-devices")).json()["items"]

    assert workers.keys() == {each.name for each in described}
    assert workers["plain"]["status"]["cpu"]["total"] == 8
    assert workers["plain"]["status"]["memory"]["total"] == 32 * GIB
    assert (workers["plain"]["status"]["gpu_devices"], workers["big-1"]["labels"]["zone"]) == ([], "a")
    assert sorted(each["id"] for each in gpus) == [f"big-{w}:cuda:{n}" for w in range(3) for n in range(4)]
    assert len({each["uuid"] for each in gpus}) == 12
    of_one = sorted((each for each in gpus if each["worker_name"] == "big-1"), key=lambda each: each["index"])
    assert [(each["link_group"], each["numa_node"]) for each in of_one] == [
        ("link0", 0),
        ("link0", 0),
        ("link1", 1),
        ("link1", 1),
    ]
    assert {each["memory"]["used"] for each in of_one} == {2 * GIB}


async def test_a_report_of_whose_memory_is_used_reaches_the_lists(api: Api) -> None:
    [worker] = fleet("workers: [{name: w, gpus: [{name: NVIDIA L4, memory: 24GiB, used: 5GiB}]}]")
    joined = await api.admin.post("/v2/workers", json=worker.registration().model_dump(mode="json"))
    [gpu] = worker.status.gpu_devices
    known = gpu.model_copy(update={"memory": gpu.memory.model_copy(update={"others": 3 * GIB})})
    memory = worker.status.memory.model_copy(update={"others": GIB})
    status = worker.status.model_copy(update={"gpu_devices": [known], "memory": memory})

    async with api.client(joined.json()["token"]) as client:
        answer = await client.post(
            "/v2/worker-heartbeat", json=Heartbeat(status=status).model_dump(mode="json")
        )
    assert answer.status_code == 204, answer.text
    await api.services.heartbeats.flush()

    [listed] = (await api.admin.get("/v2/gpu-devices")).json()["items"]
    [shown] = (await api.admin.get("/v2/workers")).json()["items"]
    assert (listed["memory"]["used"], listed["memory"]["others"]) == (5 * GIB, 3 * GIB)
    assert shown["status"]["memory"]["others"] == GIB
