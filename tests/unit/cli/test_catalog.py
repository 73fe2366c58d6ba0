"""`gpustack catalog`, and deploying by a name of it."""

from __future__ import annotations

import json
from typing import Any

from support.fake_api import FakeApi, Reply, a_model, page

Cli = Any
DEMO = {
    "id": 1, "name": "demo", "title": "Demo", "description": "It is a demo.", "categories": ["llm"],
    "licenses": ["Apache-2.0"], "size": 2.3, "size_unit": "M",
}  # fmt: skip


def test_the_catalog_is_listed(cli: Cli, api: FakeApi) -> None:
    api.on("GET", "/v2/model-sets", Reply(body=page(DEMO)))
    ended = cli("catalog")
    assert ended.out.splitlines()[1].split(maxsplit=5) == [
        "demo",
        "2.3",
        "M",
        "llm",
        "Apache-2.0",
        "It is a demo.",
    ]
    assert json.loads(cli("catalog", "--json").out)[0]["name"] == "demo"


def test_an_empty_one_says_why(cli: Cli, api: FakeApi) -> None:
    api.on("GET", "/v2/model-sets", Reply(body=page()))
    assert "no installed plugin brings a model" in cli("catalog").err


def test_a_name_is_deployed(cli: Cli, api: FakeApi) -> None:
    api.on("GET", "/v2/model-sets", Reply(body=page(DEMO)))
    model = a_model(name="demo", source="bundled", local_path="", bundled_name="demo")
    api.on("POST", "/v2/models", Reply(201, model))
    ended = cli("deploy", "demo", "--no-wait")
    assert ended.status == 0, ended.err
    (sent,) = api.requests("POST", "/v2/models")
    assert {name: sent.json[name] for name in ("name", "source", "bundled_name")} == {
        "name": "demo", "source": "bundled", "bundled_name": "demo",
    }  # fmt: skip
    assert "local_path" not in sent.json


def test_a_server_without_a_catalog_has_no_names(cli: Cli, api: FakeApi) -> None:
    ended = cli("deploy", "demo", "--no-wait")
    assert ended.status == 1
    assert "the catalog has no model 'demo'; it has: none" in ended.err


def test_what_is_served_is_listed_by_its_name(cli: Cli, api: FakeApi) -> None:
    model = a_model(name="mine", source="bundled", local_path="", bundled_name="demo")
    api.on("GET", "/v2/models", Reply(body=page(model)))
    assert cli("ls").out.splitlines()[1].endswith("bundled:demo")
