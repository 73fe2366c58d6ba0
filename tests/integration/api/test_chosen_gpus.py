"""GPUs that are chosen by hand, over the API: written, changed, taken back, refused in one line."""

from __future__ import annotations

from typing import Any

import pytest

from support.api import Api

IDS = ["box:cuda:0", "box:cuda:1"]


async def test_a_choice_is_kept_changed_and_taken_back(api: Api) -> None:
    plain = await api.model("plain")
    assert plain["gpu_selector"] is None
    model = await api.model(gpu_selector={"gpu_ids": IDS})
    assert model["gpu_selector"] == {"gpu_ids": IDS, "gpus_per_replica": None}
    assert model["spec_digest"] != plain["spec_digest"]
    path = f"/v2/models/{model['id']}"

    changed = (await api.admin.patch(path, json={"gpu_selector": {"gpus_per_replica": 1}})).json()
    assert changed["gpu_selector"] == {"gpu_ids": IDS, "gpus_per_replica": 1}
    assert changed["spec_digest"] != model["spec_digest"], "so that its copies are replaced"
    assert (await api.admin.get(path)).json() == changed
    other = (await api.admin.patch(path, json={"description": "d"})).json()
    assert other["gpu_selector"] == changed["gpu_selector"]
    free = (await api.admin.patch(path, json={"gpu_selector": None})).json()
    assert free["gpu_selector"] is None
    assert free["spec_digest"] == plain["spec_digest"]

    whole = {"local_path": model["local_path"], "gpu_selector": {"gpu_ids": ["gone:cuda:9"]}}
    put = (await api.admin.put(path, json=whole)).json()
    assert put["gpu_selector"] == {"gpu_ids": ["gone:cuda:9"], "gpus_per_replica": None}
    del whole["gpu_selector"]
    assert (await api.admin.put(path, json=whole)).json()["gpu_selector"] is None


@pytest.mark.parametrize(
    ("selector", "line"),
    [
        ({"gpu_ids": ["box"]}, "gpu_selector.gpu_ids: 'box' is no GPU: they are named worker:type:index"),
        ({"gpu_ids": [*IDS, *IDS]}, "'box:cuda:0' is named twice"),
        ({"gpu_ids": IDS, "gpus_per_replica": 3}, "gpus_per_replica 3 is more than the number of GPUs in gpu_ids, 2"),
        ({"gpu_ids": []}, "no GPU is named; leave gpu_selector null when any will do"),
    ],
)  # fmt: skip
async def test_what_cannot_be_is_refused_however_it_is_sent(
    api: Api, selector: dict[str, Any], line: str
) -> None:
    model = await api.model(gpu_selector={"gpu_ids": IDS})
    path = f"/v2/models/{model['id']}"
    spec = {"local_path": model["local_path"], "gpu_selector": selector}
    for answer in (
        await api.admin.post("/v2/models", json={"name": "other", **spec}),
        await api.admin.put(path, json=spec),
        await api.admin.patch(path, json={"gpu_selector": selector}),
    ):
        assert answer.status_code == 400, answer.text
        assert line in answer.json()["message"]
        assert "\n" not in answer.json()["message"]
    assert (await api.admin.get(path)).json() == model
