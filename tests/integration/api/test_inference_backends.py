"""Backends that people describe: made, changed, watched and removed over the API, and told to workers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gpustack.extensions import Registered
from gpustack_backends import Custom
from support.api import Api

BACKENDS = "/v2/inference-backends"
MINE = {
    "backend_name": "mine",
    "version_configs": {
        "1": {"run_command": "serve --port {{port}} {{model_path}}", "env": {"TOKEN": "secret"}},
        "2": {"image_name": "mine:2"},
    },
    "default_version": "1",
    "default_backend_param": ["--slow"],
    "health_check_path": "/ok",
    "description": "Our own.",
}
FILE = "backend_name: other\ndefault_run_command: serve {{port}}\n"


@pytest.fixture(autouse=True)
def _custom(api: Api) -> None:
    api.services.catalogue.backends["custom"] = Registered(
        cls=Custom, plugin="backends", distribution="gpustack-backends", version="0.1"
    )


async def made(api: Api, **fields: Any) -> dict[str, Any]:
    answer = await api.admin.post(BACKENDS, json={**MINE, **fields})
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def refused(api: Api, method: str, path: str, status: int, **body: Any) -> str:
    answer = await api.admin.request(method, f"{BACKENDS}{path}", json=body or None)
    assert answer.status_code == status, answer.text
    message = str(answer.json()["message"])
    assert "\n" not in message
    return message


async def test_a_backend_is_made_listed_changed_and_removed(api: Api) -> None:
    row = await made(api)

    assert (row["is_built_in"], row["plugin"], row["default_version"]) == (False, "", "1")
    assert row["version_configs"]["2"]["runner"] == "container"
    listed = (await api.admin.get(BACKENDS)).json()["items"]
    assert [(each["backend_name"], each["is_built_in"]) for each in listed] == [
        *(("any", True), ("custom", True), ("mine", False))
    ]
    assert (await api.admin.get(f"{BACKENDS}/all")).json()["items"] == listed
    [any_, _, mine] = (await api.admin.get(f"{BACKENDS}/list")).json()["items"]
    assert [each["version"] for each in any_["versions"]] == ["1.0"]
    assert [each["version"] for each in mine["versions"]] == ["1", "2"]
    assert mine["default_backend_param"] == ["--slow"]
    for path in (f"/{row['id']}", "/backend_name/mine"):
        assert (await api.admin.get(BACKENDS + path)).json() == row
    found = (await api.admin.get(BACKENDS, params={"search": "IN", "sort_by": "-backend_name"})).json()
    assert [each["backend_name"] for each in found["items"]] == ["mine"]

    answer = await api.admin.put(f"{BACKENDS}/{row['id']}", json={**row, "description": "Changed."})
    assert (answer.json()["description"], answer.json()["version_configs"]) == (
        "Changed.",
        row["version_configs"],
    )
    assert (await api.admin.delete(f"{BACKENDS}/{row['id']}")).status_code == 204
    assert await refused(api, "GET", f"/{row['id']}", 404) == f"there is no backend {row['id']}"


async def test_a_row_adds_versions_to_what_a_plugin_brings(api: Api) -> None:
    before = (await api.admin.get(f"{BACKENDS}/backend_name/any")).json()
    wanted = {"backend_name": "any", "version_configs": {"next": {"image_name": "any:next"}}}

    answer = await api.admin.put(f"{BACKENDS}/{before['id']}", json=wanted)

    row = answer.json()
    assert (row["is_built_in"], row["default_version"], row["plugin"]) == (True, "1.0", "any")
    assert (await api.admin.get(f"{BACKENDS}/backend_name/any")).json() == row
    assert "exists already" in await refused(api, "POST", "", 409, **wanted)
    assert (await api.admin.delete(f"{BACKENDS}/{row['id']}")).status_code == 204
    assert (await api.admin.get(f"{BACKENDS}/backend_name/any")).json() == before
    assert await refused(api, "DELETE", f"/{before['id']}", 409) == (
        "backend any comes with any-dist; `gpustack plugins remove` removes that"
    )


async def test_a_yaml_file_makes_a_backend_and_is_given_back(api: Api) -> None:
    answer = await api.admin.post(f"{BACKENDS}/from-yaml", json={"content": FILE})
    assert answer.status_code == 201, answer.text
    number = answer.json()["id"]
    answer = await api.admin.get(f"{BACKENDS}/{number}/yaml")
    assert (answer.text, answer.headers["content-type"]) == (FILE, "application/yaml; charset=utf-8")
    content = FILE + "description: Changed.\n"
    answer = await api.admin.put(f"{BACKENDS}/{number}/from-yaml", json={"content": content})
    assert answer.json()["description"] == "Changed."
    for text, says in (
        (FILE + "port: 1", "content:3: port: there is no such field"),
        (
            FILE.replace("port", "prot"),
            "content:2: default_run_command: there is no placeholder {{prot}}; the known",
        ),
        ("a: [", "content:1: "),
    ):
        assert (await refused(api, "POST", "/from-yaml", 400, content=text)).startswith(says)


async def test_what_makes_no_sense_is_refused(api: Api) -> None:
    row = await made(api)
    for fields, says in (
        ({"backend_name": "Any"}, "backend_name: 'Any' is too much like 'any', which a plugin brings"),
        ({"default_version": "3"}, "default_version: '3' is not in version_configs: 1, 2"),
        (
            {"version_configs": {}},
            "backend_name: a backend of your own has a default_run_command, or version_c",
        ),
        ({"version_configs": {"1": {}}}, "version_configs.1: it has neither run_command nor image_name"),
        (
            {"version_configs": {"1": {"runner": "container"}}},
            "version_configs.1: a container needs an image_name",
        ),
        ({"health_check_path": "ok"}, "health_check_path"),
    ):
        assert (await refused(api, "POST", "", 400, **{**MINE, **fields})).startswith(says)
    assert "exists already" in await refused(api, "POST", "", 409, **MINE)
    message = await refused(api, "PUT", f"/{row['id']}", 400, **{**MINE, "backend_name": "new"})
    assert message == "a backend's name stays: this one is 'mine'; describe 'new' as a new one"
    assert "sort_by" in await refused(api, "GET", "?sort_by=plugin", 400)


async def test_what_models_run_with_is_not_taken_from_them(api: Api) -> None:
    row = await made(api)
    await api.model("a", backend="mine")
    model = await api.model("b", backend="Mine", backend_version="2")
    assert model["backend"] == "mine"

    message = await refused(api, "DELETE", f"/{row['id']}", 409)
    assert message.startswith("backend mine is in use by models a, b; remove them")
    one = {**MINE, "version_configs": {"1": MINE["version_configs"]["1"]}}  # type: ignore[index]
    message = await refused(api, "PUT", f"/{row['id']}", 409, **one)
    assert message.startswith("backend mine would no longer have what model b run with")
    assert (await api.admin.delete(f"/v2/models/{model['id']}")).status_code == 204
    assert (await api.admin.put(f"{BACKENDS}/{row['id']}", json=one)).status_code == 200


async def test_what_instances_run_with_is_not_taken_from_them(api: Api) -> None:
    boxed = {"1.0": {"image_name": "any:1"}, "2": {"image_name": "any:2"}}
    row = await made(api, backend_name="any", version_configs=boxed, default_version="2")
    worker = await api.worker()
    by_name = await api.model("named", backend="any")
    by_itself = await api.model("automatic")
    await api.model("elsewhere")
    at = {"backend": "any", "backend_version": "1.0"}
    for each in (by_name, by_itself):
        await api.instance(each, worker["id"], f"{each['name']}-1", **at)

    less = {**MINE, "backend_name": "any", "version_configs": {"2": boxed["2"]}, "default_version": "2"}
    message = await refused(api, "PUT", f"/{row['id']}", 409, **less)
    assert message.startswith("backend any would no longer have what models automatic, named run with")
    message = await refused(api, "DELETE", f"/{row['id']}", 409)
    assert message.startswith("backend any is in use by models automatic, named;")

    # What ends has nothing to lose; and a model that means the other version needs only that.
    for instance in (await api.services.store.instances.list(page=-1)).items:
        await api.services.store.instances.drain(instance.id, why="placed anew", seconds=60)
    assert (await api.admin.put(f"{BACKENDS}/{row['id']}", json=less)).status_code == 200
    message = await refused(api, "DELETE", f"/{row['id']}", 409)
    assert message.startswith("backend any is in use by model named;")


async def test_a_model_that_its_backend_cannot_run_is_refused(api: Api) -> None:
    await made(api)
    model = await api.model("a", backend="mine")
    for fields, says in (
        ({"backend": "nothing"}, "backend: there is no 'nothing'; installed are any, custom, mine"),
        ({"backend": "mine", "backend_version": "3"}, "backend mine has no version '3'; it has 1, 2"),
        ({"backend": "Custom"}, "backend custom needs a run_command or an image_name"),
        (
            {"backend": "custom", "run_command": "x {{y}}"},
            "run_command: there is no placeholder {{y}}",
        ),
        ({"run_command": "x"}, "run_command goes with a backend that is named, such as custom"),
    ):
        body = {"name": "m", "local_path": "/m", **fields}
        answer = await api.admin.post("/v2/models", json=body)
        assert (answer.status_code, "\n" in answer.text) == (400, False)
        assert answer.json()["message"].startswith(says)
    answer = await api.admin.patch(f"/v2/models/{model['id']}", json={"backend_version": "3"})
    assert (answer.status_code, answer.json()["message"]) == (
        400,
        "backend mine has no version '3'; it has 1, 2",
    )
    answer = await api.admin.patch(
        f"/v2/models/{model['id']}", json={"backend": "CUSTOM", "run_command": "x"}
    )
    assert (answer.json()["backend"], answer.json()["run_command"]) == ("custom", "x")
    assert answer.json()["spec_digest"] != model["spec_digest"]


async def test_a_worker_is_told_how_its_instance_is_run_and_nothing_else(api: Api) -> None:
    row = await made(api)
    mine, other = await api.worker(), await api.worker("uuid-of-worker-2")
    model = await api.model("m", backend="mine", backend_parameters=["--fast"])
    here = await api.instance(model, mine["id"], "m-1", backend="mine", backend_version="1")
    there = await api.instance(model, other["id"], "m-2", backend="mine", backend_version="2")
    as_worker = api.client(mine["token"])

    told = (await as_worker.get(f"/v2/models/{model['id']}", params={"instance_id": here})).json()

    assert (told["served_by"], told["backend_parameters"]) == ("custom", ["--slow", "--fast"])
    assert (told["health_check_path"], told["trouble"]) == ("/ok", "")
    assert told["config"]["run_command"] == "serve --port {{port}} {{model_path}}"
    assert told["config"]["env"] == {"TOKEN": "secret"}
    answer = await as_worker.get(f"/v2/models/{model['id']}", params={"instance_id": there})
    assert answer.status_code == 404
    key = api.client(await api.key(allowed_model_names=["m"]))
    for path in ("", "/all", "/list", "/backend_name/mine", f"/{row['id']}", f"/{row['id']}/yaml"):
        assert (await as_worker.get(BACKENDS + path)).status_code == 403, path
        assert (await api.anyone.get(BACKENDS + path)).status_code == 401, path
        assert (await key.get(BACKENDS + path)).status_code == 403, path
    for method, path in (
        ("POST", ""),
        ("POST", "/from-yaml"),
        ("PUT", f"/{row['id']}"),
        ("DELETE", f"/{row['id']}"),
    ):
        assert (await as_worker.request(method, BACKENDS + path, json=MINE)).status_code == 403, (
            method,
            path,
        )
    await as_worker.aclose()
    await key.aclose()


async def test_rows_are_watched(api: Api) -> None:
    row = await made(api)
    async with api.admin.stream("GET", BACKENDS, params={"watch": "true"}) as answer:
        lines = answer.aiter_lines()
        seen = []
        async for line in lines:
            if not line:
                continue
            event = json.loads(line)
            seen.append((event["type"], event["id"], event["data"].get("description")))
            if event["type"] == 5:
                await api.admin.put(f"{BACKENDS}/{row['id']}", json={**MINE, "description": "Changed."})
                await api.admin.delete(f"{BACKENDS}/{row['id']}")
            if event["type"] == 3:
                break
    number = row["id"]
    assert seen == [(1, number, "Our own."), (5, 0, None), (2, number, "Changed."), (3, number, "Changed.")]
