"""Routes over the API: made, changed, watched, and asked by their names."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx

from gpustack.plugin.routing import RoutingDelta, RoutingTable
from gpustack.schemas import InstanceState
from support.api import Api
from support.fake_engine import FakeEngine, says_ok

ROUTES, TARGETS = "/v2/model-routes", "/v2/model-route-targets"


async def made(api: Api, name: str, *targets: Any, **fields: Any) -> dict[str, Any]:
    wanted = [{"model_name": each} if isinstance(each, str) else each for each in targets]
    answer = await api.admin.post(ROUTES, json={"name": name, "targets": wanted, **fields})
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def running(api: Api, name: str, port: int, worker_id: int) -> None:
    model = await api.model(name)
    await api.instance(model, worker_id, name=f"{name}-1", state=InstanceState.RUNNING, port=port)
    await api.routed(name, 1)


async def test_routes_are_made_changed_and_removed(api: Api) -> None:
    old, new = await api.model("old"), await api.model("new")
    route = await made(api, "smart", "old", aliases=["gpt"])
    path = f"{ROUTES}/{route['id']}"

    answer = await api.admin.post(
        f"{path}/add-targets", json={"targets": [{"model_id": new["id"], "weight": 10}]}
    )
    assert [each["model_name"] for each in answer.json()["targets"]] == ["old", "new"]
    second = answer.json()["targets"][1]
    answer = await api.admin.put(f"{TARGETS}/{second['id']}", json={"weight": 30})
    assert answer.json()["weight"] == 30
    answer = await api.admin.post(f"{TARGETS}/{second['id']}/set-fallback")
    assert answer.json() == (await api.admin.get(f"{TARGETS}/{second['id']}")).json()
    assert answer.json()["is_fallback"]
    answer = await api.admin.post(f"{TARGETS}/{second['id']}/set-fallback", params={"fallback": False})
    assert not answer.json()["is_fallback"]
    listed = (await api.admin.get(TARGETS, params={"model_id": old["id"]})).json()
    assert [each["route_id"] for each in listed["items"]] == [1, route["id"]]
    assert (await api.admin.delete(f"{TARGETS}/{second['id']}")).status_code == 204
    assert (await api.admin.patch(path, json={"description": "d"})).json()["aliases"] == ["gpt"]
    answer = await api.admin.put(path, json={"name": "clever"})
    assert (answer.json()["name"], answer.json()["aliases"]) == ("clever", [])
    assert [each["model_name"] for each in answer.json()["targets"]] == ["old"]
    assert answer.json() == (await api.admin.get(path)).json()
    names = [each["name"] for each in (await api.admin.get(ROUTES)).json()["items"]]
    assert names == ["old", "new", "clever"]
    assert (await api.admin.delete(path)).status_code == 204
    assert (await api.admin.get(path)).status_code == 404


_WRONG: list[tuple[dict[str, Any], int, str]] = [
    ({"name": "r", "targets": []}, 400, "targets: list should have at least 1 item"),
    ({"name": "r"}, 400, "targets: is required"),
    ({"name": "a b", "targets": [{"model_id": 1}]}, 400, "name: "),
    ({"name": "r", "targets": [{}]}, 400, "targets.0: a target has a model_id or a model_name, and not both"),
    ({"name": "r", "targets": [{"model_name": "x", "weight": -1}]}, 400, "targets.0.weight: input should be"),
    ({"name": "r", "targets": [{"model_id": 2**70}]}, 400, "targets.0.model_id: input should be"),
    ({"name": "r", "targets": [{"model_name": "x"}]}, 404, "targets: there is no model 'x'"),
    ({"name": "r", "targets": [{"model_id": 1}], "aliases": ["a", "a"]}, 400, "aliases: 'a' is in the list twice"),
]  # fmt: skip


async def test_what_is_wrong_with_a_route_is_one_line(api: Api) -> None:
    for body, status, words in _WRONG:
        answer = await api.admin.post(ROUTES, json=body)
        assert (answer.status_code, "\n" in answer.json()["message"]) == (status, False)
        assert words in answer.json()["message"]


async def test_routes_are_for_administrators(api: Api) -> None:
    assert (await api.anyone.get(ROUTES)).status_code == 401
    async with api.client(await api.key(allowed_model_names=["tiny"])) as limited:
        assert (await limited.get(ROUTES)).status_code == 403
        assert (await limited.get(TARGETS)).status_code == 403


async def test_a_route_is_watched_with_its_targets(api: Api) -> None:
    await api.model("tiny")
    async with asyncio.timeout(5), api.admin.stream("GET", ROUTES, params={"watch": True}) as stream:
        lines = (json.loads(line) async for line in stream.aiter_lines() if line)
        assert [(await anext(lines))["type"] for _ in range(2)] == [1, 5]
        route = await made(api, "smart", "tiny")
        event = await anext(lines)
        assert event["data"] == route
        await api.admin.delete("/v2/models/1")
        events = {each["id"]: each for each in [await anext(lines), await anext(lines)]}

    assert events[1]["type"] == 3  # the model's own went with it
    assert events[route["id"]]["data"]["state_message"] == "model tiny was removed"
    assert set(events[route["id"]]["changed_fields"]) == {"targets", "state_message"}


async def test_requests_reach_a_route_by_name_and_alias_and_by_its_fallback(api: Api) -> None:
    async with FakeEngine(says_ok) as one, FakeEngine(says_ok) as two:
        worker = await api.worker()
        await running(api, "one", one.port, worker["id"])
        await running(api, "two", two.port, worker["id"])
        await made(api, "both", "one", {"model_name": "two", "weight": 10}, aliases=["also"])
        stopped = await api.model("stopped")
        await made(api, "spare", "stopped", {"model_name": "two", "is_fallback": True})
        await api.routed("also", 2)
        await api.routed("spare", 0)

        async def ask(name: str, client: httpx.AsyncClient = api.admin) -> int:
            return (await client.post("/v1/completions", json={"model": name, "prompt": "x"})).status_code

        async def listed(client: httpx.AsyncClient) -> list[str]:
            return [each["id"] for each in (await client.get("/v1/models")).json()["data"]]

        assert [await ask(name) for name in ("both", "also", "spare", "stopped", "none")] == [200] * 3 + [
            503,
            404,
        ]
        assert await listed(api.admin) == ["also", "both", "one", "spare", "two"]
        async with api.client(await api.key(allowed_model_names=["also", "spare"])) as limited:
            assert await listed(limited) == ["also", "spare"]
            assert [await ask(name, limited) for name in ("also", "spare", "both", "two")] == [
                200,
                200,
                404,
                404,
            ]
            assert (await limited.get("/v1/models/also")).json()["id"] == "also"

    assert one.seen
    assert two.seen
    assert stopped["ready_replicas"] == 0


async def test_listeners_hear_of_a_key_and_a_route_once_each(api: Api) -> None:
    told: list[RoutingDelta | None] = []

    def listen(_: RoutingTable, delta: RoutingDelta | None) -> None:
        told.append(delta)

    stop = api.services.routing.listen(listen)
    await api.key()
    await api.model("tiny")
    await api.routed("tiny", 0)
    last = await api.services.store.events.last_number()
    async with asyncio.timeout(5):
        while api.services.routing._number < last:
            await asyncio.sleep(0.005)
    stop()
    await api.key(name="another")

    keys, routes = told
    assert keys is not None
    assert routes is not None
    assert len(keys.principals_changed) == 1
    assert routes.changed == {"tiny"}
