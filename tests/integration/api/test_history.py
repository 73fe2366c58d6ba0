"""What happened to instances, as the API tells it."""

from __future__ import annotations

import json

from support.api import Api


async def test_events_of_a_model_are_listed_newest_first_and_outlive_it(api: Api) -> None:
    model = await api.model("tiny")
    instance = await api.instance(model, None)
    await api.admin.delete(f"/v2/models/{model['id']}")

    listed = (await api.admin.get("/v2/model-instance-events?model_name=tiny")).json()

    assert [each["what"] for each in listed["items"]][-1] == "created"
    assert {each["instance_id"] for each in listed["items"]} == {instance}
    numbers = [each["id"] for each in listed["items"]]
    assert numbers == sorted(numbers, reverse=True)
    one = (await api.admin.get(f"/v2/model-instance-events/{numbers[0]}")).json()
    assert one == listed["items"][0]


async def test_what_happened_is_for_people_and_not_for_workers(api: Api) -> None:
    worker = await api.worker()
    path, headers = "/v2/model-instance-events", {"Authorization": f"Bearer {worker['token']}"}
    assert (await api.anyone.get(path)).status_code == 401
    for each in (path, f"{path}/1", f"{path}?watch=true"):
        assert (await api.anyone.get(each, headers=headers)).status_code == 403


async def test_wrong_questions_are_one_line(api: Api) -> None:
    for query, said in (
        ("page=0", "counted from 1"),
        ("page=-1", "too long for one page"),
        ("perPage=1001", "perPage"),
        ("sort_by=nope", "nope"),
        ("instance_id=x", "instance_id"),
        ("watch=true&search=x", "search"),
    ):
        answer = await api.admin.get(f"/v2/model-instance-events?{query}")
        assert (answer.status_code, answer.json()["message"].count("\n")) == (400, 0), query
        assert said in answer.json()["message"]


async def test_a_watch_begins_with_what_happened_and_goes_on(api: Api) -> None:
    instance = await api.instance(await api.model(), None)
    seen = []
    async with api.admin.stream(
        "GET", f"/v2/model-instance-events?watch=true&instance_id={instance}"
    ) as stream:
        async for line in stream.aiter_lines():
            if not line:
                continue
            event = json.loads(line)
            seen.append(event["data"].get("what", "heartbeat"))
            if seen[-1] == "heartbeat":
                await api.admin.delete(f"/v2/model-instances/{instance}?force=true")
            if seen[-1] == "removed":
                break
    assert seen[0] == "created"
    assert seen[-2:] == ["heartbeat", "removed"]
