"""Lists of a fleet are put together from stored text: they say the same as what is understood and written anew."""

from __future__ import annotations

import json
from typing import Any

import pytest

from support.api import DOOR_TOKEN, Api


def a_gpu(index: int, **fields: Any) -> dict[str, Any]:
    return {
        "uuid": f"GPU-{index}",
        "index": index,
        "vendor": "nvidia",
        "name": "A100",
        "type": "cuda",
        **fields,
    }


async def joined(api: Api, name: str, **fields: Any) -> int:
    about = {"name": name, "ip": "10.0.0.1", "door_token": DOOR_TOKEN, "version": "0.0.test", **fields}
    answer = await api.admin.post("/v2/workers", json={"worker_uuid": f"uuid of {name}", **about})
    assert answer.status_code == 201, answer.text
    return int(answer.json()["id"])


@pytest.fixture
async def fleet(api: Api) -> Api:
    """Three workers: with two GPUs and odd words, with one GPU that has no type, and with nothing known."""
    odd = {"zone": 'a "quoted" \\ naïve \U0001f600 zone'}
    await joined(api, "big", labels=odd, status={"gpu_devices": [a_gpu(0), a_gpu(1, name="H200")]})
    await joined(api, "small", status={"gpu_devices": [a_gpu(0, type="", vendor="acme")]})
    await joined(api, "bare")
    return api


@pytest.mark.parametrize(
    "query", ["page=-1", "page=1&perPage=2&sort_by=-name", "page=2&perPage=2", "search=a", "page=9"]
)
async def test_the_list_of_workers_says_what_the_rows_say(fleet: Api, query: str) -> None:
    asked = dict(word.split("=") for word in query.split("&"))
    page = await fleet.services.store.workers.list(
        page=int(asked.get("page", 1)),
        per_page=int(asked.get("perPage", 100)),
        search=asked.get("search"),
        sort_by=asked.get("sort_by"),
    )
    answer = await fleet.admin.get(f"/v2/workers?{query}")
    assert answer.headers["content-type"].startswith("application/json")
    assert answer.json() == json.loads(page.model_dump_json())


async def test_a_list_and_one_worker_agree(fleet: Api) -> None:
    for listed in (await fleet.admin.get("/v2/workers")).json()["items"]:
        assert (await fleet.admin.get(f"/v2/workers/{listed['id']}")).json() == listed


async def test_a_column_that_a_migration_has_added_empty_shows_its_defaults(fleet: Api) -> None:
    from gpustack.db.repositories.base import sql

    await fleet.services.store._pool.fetch(sql("UPDATE workers SET status = {} WHERE name = 'bare'", "{}"))
    answer = await fleet.admin.get("/v2/workers?search=bare")
    (bare,) = answer.json()["items"]
    assert bare["status"]["memory"]["total"] == 0
    assert bare == (await fleet.admin.get(f"/v2/workers/{bare['id']}")).json()
    assert (await fleet.admin.get("/v2/gpu-devices")).json()["pagination"]["total"] == 3


async def test_gpus_are_listed_with_their_workers(fleet: Api) -> None:
    answer = (await fleet.admin.get("/v2/gpu-devices?page=-1")).json()
    assert [gpu["id"] for gpu in answer["items"]] == ["big:cuda:0", "big:cuda:1", "small:acme:0"]
    first = answer["items"][0]
    assert first["labels"]["zone"].startswith("a ")
    assert (first["worker_name"], first["worker_ip"], first["memory"]["total"]) == ("big", "10.0.0.1", 0)
    assert (await fleet.admin.get("/v2/gpu-devices/big:cuda:0")).json() == first


async def test_gpus_are_paged_searched_and_chosen_by_worker(fleet: Api) -> None:
    async def ids(query: str) -> list[str]:
        answer = await fleet.admin.get(f"/v2/gpu-devices?{query}")
        return [gpu["id"] for gpu in answer.json()["items"]]

    assert await ids("page=2&perPage=2") == ["small:acme:0"]
    assert await ids("search=h200") == ["big:cuda:1"]
    (small,) = (await fleet.admin.get("/v2/workers?search=small")).json()["items"]
    assert await ids(f"worker_id={small['id']}") == ["small:acme:0"]
    assert await ids(f"cluster_id={small['cluster_id'] + 1}") == []
    assert (await fleet.admin.get("/v2/gpu-devices/big:cuda:7")).status_code == 404


async def test_where_nothing_is_placed_no_moves_are_proposed(api: Api) -> None:
    answer = await api.admin.get("/v2/defragmentation")
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) == 5
    assert "places no instances now" in answer.json()["message"]
    assert (await api.anyone.get("/v2/defragmentation")).status_code == 401
