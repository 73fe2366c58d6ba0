"""The catalog: what can be deployed by its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpustack.extensions import Registered
from gpustack.plugin import BundledModel, ModelCard, NoSettings
from support.api import Api
from support.bundled import a_bundled_model


class Broken(BundledModel[NoSettings]):
    name = "broken"
    settings_type = NoSettings

    def card(self) -> ModelCard:
        raise OSError("the disk is gone")

    def path(self) -> Path:
        raise OSError("the disk is gone")


def bring(api: Api, **models: Any) -> None:
    api.services.catalogue.bundled_models.update(models)


async def test_an_entry_shows_its_card(api: Api) -> None:
    assert (await api.admin.get("/v2/model-sets")).json()["items"] == []
    bring(api, tiny=a_bundled_model(Path("/m.gguf")))
    listed = (await api.admin.get("/v2/model-sets")).json()
    assert listed["pagination"]["total"] == 1
    assert listed["items"] == [
        {
            "id": 1, "name": "tiny", "title": "Tiny", "description": "It is tiny.", "home": "", "categories": ["llm"],
            "capabilities": ["context/2K"], "licenses": ["MIT"], "size": 2.3, "size_unit": "M",
        }
    ]  # fmt: skip
    assert (await api.admin.get("/v2/model-sets/1")).json() == listed["items"][0]
    assert (await api.admin.get("/v2/model-sets", params={"search": "TIN"})).json()["items"] == listed[
        "items"
    ]
    assert (await api.admin.get("/v2/model-sets", params={"search": "x"})).json()["items"] == []


async def test_a_spec_is_what_a_deployment_sends(api: Api) -> None:
    bring(api, tiny=a_bundled_model(Path("/m.gguf")))
    (spec,) = (await api.admin.get("/v2/model-sets/1/specs")).json()["items"]
    assert spec == {"mode": "standard", "source": "bundled", "bundled_name": "tiny", "categories": ["llm"]}
    body = {"name": "mine", "source": spec["source"], "bundled_name": spec["bundled_name"]}
    answer = await api.admin.post("/v2/models", json=body)
    assert answer.status_code == 201, answer.text
    assert answer.json()["bundled_name"] == "tiny"


async def test_a_broken_plugin_takes_no_other_entry_away(api: Api) -> None:
    broken = Registered(cls=Broken, plugin="acme", distribution="acme", version="1")
    bring(api, broken=broken, tiny=a_bundled_model(Path("/m.gguf")))
    assert [each["name"] for each in (await api.admin.get("/v2/model-sets")).json()["items"]] == ["tiny"]


async def test_what_is_not_there_is_said(api: Api) -> None:
    bring(api, tiny=a_bundled_model(Path("/m.gguf")))
    assert (await api.admin.get("/v2/model-sets/2")).status_code == 404
    assert (await api.admin.get("/v2/model-sets/2/specs")).status_code == 404
    body = {"name": "m", "source": "bundled", "bundled_name": "tony"}
    for answer in (
        await api.admin.post("/v2/models", json=body),
        await api.admin.patch("/v2/models/1", json={"bundled_name": "tony"}),
    ):
        assert answer.status_code == 400, answer.text
        assert answer.json()["message"] == "no installed plugin brings a model 'tony'; there are: tiny"


async def test_a_changed_name_is_another_model_to_serve(api: Api) -> None:
    bring(api, tiny=a_bundled_model(Path("/m.gguf")), other=a_bundled_model(Path("/o.gguf"), "other"))
    body = {"name": "m", "source": "bundled", "bundled_name": "tiny"}
    before = (await api.admin.post("/v2/models", json=body)).json()
    after = await api.admin.patch(f"/v2/models/{before['id']}", json={"bundled_name": "other"})
    assert after.json()["spec_digest"] != before["spec_digest"]


async def test_strangers_see_nothing(api: Api) -> None:
    assert (await api.anyone.get("/v2/model-sets")).status_code == 401
