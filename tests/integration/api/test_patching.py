from __future__ import annotations

import asyncio
from typing import Any

import pytest

from support.api import Api


async def test_only_what_is_named_changes(api: Api) -> None:
    rollout = {"max_surge": 2, "max_unavailable": 1, "drain_seconds": 7}
    model = await api.model(
        env={"A": "1", "B": "2"}, rollout=rollout, backend_parameters=["-a", "-b"], meta={"x": 1}
    )
    changes = {"env": {"A": None, "C": "3"}, "rollout": {"max_surge": 3}, "backend_parameters": ["-c"]}

    changed = (await api.admin.patch(f"/v2/models/{model['id']}", json=changes)).json()

    differs = {name: value for name, value in changed.items() if value != model[name]}
    assert differs.keys() <= {*changes, "spec_digest", "updated_at"}
    assert changed["env"] == {"B": "2", "C": "3"}
    assert changed["rollout"] == {**rollout, "max_surge": 3}
    assert changed["backend_parameters"] == ["-c"]
    assert changed["spec_digest"] != model["spec_digest"]
    assert (await api.admin.get(f"/v2/models/{model['id']}")).json() == changed

    back = {"env": None, "rollout": None, "name": model["name"], "cluster_id": None}
    reset = (await api.admin.patch(f"/v2/models/{model['id']}", json=back)).json()
    assert (reset["env"], reset["rollout"]["drain_seconds"], reset["meta"]) == ({}, 120, {"x": 1})


async def test_changes_at_the_same_time_are_all_kept(api: Api) -> None:
    model = await api.model()
    path = f"/v2/models/{model['id']}"
    changes: list[dict[str, Any]] = [{"env": {f"V{n}": "x"}} for n in range(8)]
    changes += [{"replicas": 3}, {"description": "d"}]

    await asyncio.gather(*(api.admin.patch(path, json=each) for each in changes))

    after = (await api.admin.get(path)).json()
    assert (after["replicas"], after["description"]) == (3, "d")
    assert after["env"].keys() == {f"V{n}" for n in range(8)}


@pytest.mark.parametrize(
    ("changes", "status", "said"),
    [
        ({"replicas": -1}, 400, "replicas: "),
        ({"replicas": "two"}, 400, "replicas: "),
        ({"env": {"1A": "x"}}, 400, "'1A' is not an environment variable"),
        ({"rollout": {"max_surge": 0}}, 400, "nothing could ever be exchanged"),
        ({"rollout": {"surge": 0}}, 400, "rollout.surge: there is no such field"),
        ({"local_path": None}, 400, "local_path is missing"),
        ({"source": "huggingface"}, 400, 'local_path goes with source "local_path"'),
        ({"backend": "nope"}, 400, "there is no 'nope'"),
        ({"name": "other"}, 400, "name stays"),
        ({"cluster_id": 99}, 404, "there is no cluster 99"),
        ({"id": 5}, 400, "id: there is no such field"),
        ([], 400, "must be a JSON object"),
    ],
)
async def test_what_would_be_no_model_is_one_line_and_changes_nothing(
    api: Api, changes: Any, status: int, said: str
) -> None:
    model = await api.model()

    answer = await api.admin.patch(f"/v2/models/{model['id']}", json=changes)

    assert answer.status_code == status
    assert said in answer.json()["message"]
    assert "\n" not in answer.json()["message"]
    assert (await api.admin.get(f"/v2/models/{model['id']}")).json() == model
    assert (await api.admin.patch("/v2/models/999", json={"replicas": 1})).status_code == 404


async def test_how_a_model_is_served_can_be_changed_piece_by_piece(api: Api) -> None:
    model = await api.model()
    path = f"/v2/models/{model['id']}"
    changes = {"min_replicas": 0, "max_replicas": 4, "timeouts": {"between": 9}, "priority": 3}
    changed = (await api.admin.patch(path, json=changes)).json()
    assert (changed["min_replicas"], changed["max_replicas"], changed["replicas"]) == (0, 4, 1)
    assert changed["timeouts"] == {"connect": 2.0, "first_byte": 600.0, "between": 9.0}
    assert changed["spec_digest"] == model["spec_digest"]

    refused = await api.admin.patch(path, json={"replicas": 9})
    assert refused.status_code == 400
    assert "replicas 9 is not between min_replicas 0 and max_replicas 4" in refused.json()["message"]
    refused = await api.admin.patch(path, json={"autoscaling": {"outstanding": 0, "kv_cache": 0}})
    assert refused.status_code == 400
    assert "nothing to scale by" in refused.json()["message"]
    fixed = (await api.admin.patch(path, json={"min_replicas": None, "max_replicas": None})).json()
    assert (fixed["min_replicas"], fixed["max_replicas"]) == (None, None)
