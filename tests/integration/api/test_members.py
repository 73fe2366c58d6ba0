"""An instance over several workers, as its row and the API have it: each worker has its part, and sees all of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

from gpustack.schemas import Claim, InstanceMember, InstanceState, MemberState
from support.api import Api

S, M = InstanceState, MemberState


def _as(worker: dict[str, Any]) -> dict[str, str]:
    return {"Authorization": f"Bearer {worker['token']}"}


class Placed:
    """A model on two of three workers."""

    def __init__(self, api: Api, workers: list[dict[str, Any]], instance: int) -> None:
        self.api, self.workers, self.instance = api, workers, instance

    async def row(self) -> Any:
        return await self.api.services.store.instances.get(self.instance)

    async def say(self, number: int, state: MemberState, message: str = "", **more: Any) -> Any:
        member = {"number": number, "attempt": 1, "state": state, "host": f"10.0.0.{number + 1}", **more}
        body = {"state": "starting", "state_message": message, "member": member}
        if number == 0:
            body |= {"pid": 77, "port": 40001}
        path = f"/v2/model-instances/{self.instance}/report"
        return await self.api.anyone.post(path, json=body, headers=_as(self.workers[number]))

    async def listed(self, worker: int) -> list[int]:
        found = await self.api.anyone.get("/v2/model-instances", headers=_as(self.workers[worker]))
        return [each["id"] for each in found.json()["items"]]


async def placed(api: Api) -> Placed:
    workers = [await api.worker(f"uuid-of-worker-{each}", name=f"w{each}") for each in (1, 2, 3)]
    instance = await api.instance(await api.model(), None, "whole-1")
    members = [
        InstanceMember(number=each, worker_id=workers[each]["id"], computed_resource_claim=Claim(ram=5))
        for each in (0, 1)
    ]
    columns = {"worker_id": workers[0]["id"], "backend": "any", "members": members}
    before = (await api.services.store.instances.get(instance)).state
    given = await api.services.store.instances.schedule({instance: columns}, expect={instance: before})
    assert [each.id for each in given] == [instance]
    return Placed(api, workers, instance)


async def test_workers_of_its_members_see_it_and_others_do_not(api: Api) -> None:
    one = await placed(api)
    row = await one.row()

    assert [each.worker_name for each in row.members] == ["w1", "w2"]
    assert (row.state, row.attempt, row.worker_name) == (S.SCHEDULED, 1, "w1")
    assert await one.listed(0) == await one.listed(1) == [one.instance]
    assert await one.listed(2) == []
    path = f"/v2/model-instances/{one.instance}"
    answers = [await api.anyone.get(path, headers=_as(each)) for each in one.workers]
    assert [each.status_code for each in answers] == [200, 200, 404]


async def test_workers_of_its_members_are_told_how_to_run_it(api: Api) -> None:
    one = await placed(api)
    model = (await one.row()).model_id
    for query in ("", f"?instance_id={one.instance}"):
        path = f"/v2/models/{model}{query}"
        answers = [await api.anyone.get(path, headers=_as(each)) for each in one.workers]
        assert [each.status_code for each in answers] == [200, 200, 404], query


async def test_it_runs_once_all_members_have_said_so(api: Api) -> None:
    one = await placed(api)
    for state in (M.PREPARED, M.CHECKED, M.STARTING, M.RUNNING):
        for number in (0, 1):
            answer = await one.say(number, state, ports=[42300 + number])
            assert answer.status_code == 200
    row = await one.row()

    assert (row.state, row.state_message) == (S.RUNNING, "")
    assert (row.pid, row.port) == (77, 40001), "the leader's"
    assert [(each.host, each.ports) for each in row.members] == [("10.0.0.1", [42300]), ("10.0.0.2", [42301])]


async def test_a_worker_speaks_of_its_own_member_only(api: Api) -> None:
    one = await placed(api)
    path = f"/v2/model-instances/{one.instance}/report"
    body = {"state": "running", "member": {"number": 0, "attempt": 1, "state": "running"}}
    wrong = [await api.anyone.post(path, json=body, headers=_as(each)) for each in one.workers[1:]]

    assert [each.status_code for each in wrong] == [409, 409]
    assert (await api.admin.post(path, json=body)).status_code == 403
    alone = await api.anyone.post(path, json={"state": "running"}, headers=_as(one.workers[0]))
    assert alone.status_code == 409
    assert (await one.row()).state is S.SCHEDULED


async def test_a_failure_says_whose_it_is_and_is_remembered(api: Api) -> None:
    one = await placed(api)
    await one.say(1, M.FAILED, "the engine exited with status 3")
    row = await one.row()

    said = "member 1 on w2 failed: the engine exited with status 3; trying again now"
    assert (row.state, row.state_message, row.failed_attempts) == (S.ERROR, said, 1)
    items = (await api.admin.get(f"/v2/model-instance-events?instance_id={one.instance}")).json()["items"]
    assert (items[0]["what"], items[0]["message"]) == ("error", said)
    assert (await one.say(1, M.RUNNING)).status_code == 200, "old news is no mistake"
    assert (await one.row()).state is S.ERROR


async def test_it_is_gone_when_all_members_have_drained(api: Api) -> None:
    one = await placed(api)
    for number in (0, 1):
        await one.say(number, M.RUNNING)
    assert (await api.admin.delete(f"/v2/model-instances/{one.instance}")).status_code == 204
    await one.say(0, M.ENDED)
    assert [each.state for each in (await one.row()).members] == [M.ENDED, M.RUNNING]
    assert (await one.row()).state is S.RUNNING
    await one.say(1, M.ENDED)

    assert await one.listed(0) == []


async def test_what_members_share_is_told_to_their_workers_alone(api: Api) -> None:
    one = await placed(api)
    path = f"/v2/model-instances/{one.instance}/group"
    told = [await api.anyone.get(path, headers=_as(each)) for each in one.workers]

    assert [each.status_code for each in told] == [200, 200, 404]
    assert told[0].json() == told[1].json()
    assert len(told[0].json()["token"]) == 64
    assert (await api.admin.get(path)).status_code == 404


async def test_a_watch_of_a_worker_follows_its_member(api: Api) -> None:
    one = await placed(api)
    seen: list[tuple[int, int]] = []

    async def watch() -> None:
        url = "/v2/model-instances?watch=true"
        async with api.anyone.stream("GET", url, headers=_as(one.workers[1]), timeout=30) as answer:
            async for line in answer.aiter_lines():
                if line.strip():
                    event = json.loads(line)
                    seen.append((event["type"], event["id"]))

    task = asyncio.create_task(watch())
    try:
        async with asyncio.timeout(10):
            while len(seen) < 2:
                await asyncio.sleep(0.01)
            await one.say(0, M.PREPARED)
            await api.services.store.instances.update(
                one.instance, state=S.PENDING, worker_id=None, members=[]
            )
            while len(seen) < 4:
                await asyncio.sleep(0.01)
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    # A replay and its end; what the other member says; and the end of its part here.
    assert [kind for kind, _ in seen] == [1, 5, 2, 3]


async def test_it_is_not_given_to_workers_of_which_one_is_gone(api: Api) -> None:
    one = await placed(api)
    store = api.services.store
    await store.instances.update(one.instance, state=S.PENDING, worker_id=None, members=[])
    await api.admin.delete(f"/v2/workers/{one.workers[1]['id']}")
    members = [InstanceMember(number=each, worker_id=one.workers[each]["id"]) for each in (0, 1)]
    columns = {"worker_id": one.workers[0]["id"], "members": members}

    given = await store.instances.schedule({one.instance: columns}, expect={one.instance: S.PENDING})

    assert not given
    assert (await one.row()).worker_id is None


async def test_a_worker_that_comes_back_elsewhere_takes_its_members_along(api: Api) -> None:
    one = await placed(api)
    await api.worker("uuid-of-worker-2", name="w2", ip="10.9.9.9", credential=one.workers[1]["token"])
    row = await one.row()

    assert [each.worker_ip for each in row.members][1] == "10.9.9.9"
    assert row.worker_ip == row.members[0].worker_ip != "10.9.9.9"
