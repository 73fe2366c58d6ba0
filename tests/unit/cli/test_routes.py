"""`gpustack routes` against a scripted server."""

from __future__ import annotations

import json
from typing import Any

import pytest

from support.fake_api import FakeApi, Reply, a_model, page

Cli = Any
_TIME = "2026-01-02T03:04:05Z"


def a_route(name: str = "chat", *targets: dict[str, Any], number: int = 5, **fields: Any) -> dict[str, Any]:
    return {
        "id": number, "name": name, "created_at": _TIME, "updated_at": _TIME, "targets": list(targets), **fields,
    }  # fmt: skip


def a_target(name: str, weight: int = 100, **fields: Any) -> dict[str, Any]:
    return {
        "id": 1, "route_id": 5, "model_id": 1, "model_name": name, "weight": weight, "created_at": _TIME,
        "updated_at": _TIME, **fields,
    }  # fmt: skip


SMART = a_route(
    "smart",
    a_target("old", 199), a_target("new", 1), a_target("gone", 0, model_id=None), a_target("spare", is_fallback=True),
    aliases=["gpt"], fallback_status_codes=["5xx", "429"],
)  # fmt: skip


def test_routes_are_listed_with_the_shares_of_their_targets(cli: Cli, api: FakeApi) -> None:
    api.on("GET", "/v2/model-routes", Reply(body=page(SMART, a_route("tiny", a_target("tiny")))))

    head, smart, tiny = cli("routes", "list").out.splitlines()
    assert head.split() == ["NAME", "ALIASES", "TARGETS", "FALLBACK", "AGE"]
    assert "gpt      old 100%, new <1%, gone (removed) 0%  spare (on 5xx, 429)" in smart
    assert tiny.split()[:5] == ["tiny", "-", "tiny", "100%", "-"]
    assert [each["name"] for each in json.loads(cli("routes", "list", "--json").out)] == ["smart", "tiny"]


def test_a_route_is_created_as_it_is_described(cli: Cli, api: FakeApi) -> None:
    api.on("POST", "/v2/model-routes", Reply(201, a_route()))

    ended = cli(
        "routes", "create", "chat", "--target", "v1=90", "--target", "v2", "--alias", "a", "--fallback", "v0",
        "--fallback-on", "5XX", "--fallback-on", "429",
    )  # fmt: skip
    assert (ended.status, ended.out) == (0, "Created chat.\n")
    sent = api.asked[-1].json
    assert (sent["name"], sent["aliases"]) == ("chat", ["a"])
    assert sent["fallback_status_codes"] == ["5xx", "429"]
    assert sent["targets"] == [
        {"model_name": "v1", "weight": 90},
        {"model_name": "v2", "weight": 100},
        {"model_name": "v0", "is_fallback": True},
    ]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["chat"], "--target MODEL"),
        (["chat", "--target", "v1=much"], "--target 'v1=much' is not MODEL or MODEL=WEIGHT"),
        (["chat", "--target", "=3"], "is not MODEL or MODEL=WEIGHT"),
        (["chat", "--target", "v1=99999"], "--target: Input should be less than or equal to 10000"),
        (["no good", "--target", "v1"], "name 'no good': a name is made of letters"),
        (["chat", "--target", "v1", "--alias", "a", "--alias", "a"], "--alias: 'a' is in the list twice"),
    ],
)
def test_what_no_route_can_be_is_wrong_usage(cli: Cli, api: FakeApi, args: list[str], words: str) -> None:
    ended = cli("routes", "create", *args)
    assert (ended.status, len(ended.err.strip().splitlines())) == (2, 1)
    assert words in ended.err
    assert api.asked == []


@pytest.mark.parametrize(
    ("args", "sent"),
    [
        (["--name", "clever"], {"name": "clever"}),
        (["--alias", ""], {"aliases": []}),
        (["--target", "v3"], {"targets": [{"model_name": "v3", "weight": 100}, "spare"]}),
        (["--fallback", ""], {"targets": ["old", "new", "gone"]}),
        (["--fallback", "new"], {"targets": ["old", "gone", {"model_name": "new", "is_fallback": True}]}),
    ],
)
def test_only_what_is_named_of_a_route_changes(cli: Cli, api: FakeApi, args: list[str], sent: Any) -> None:
    api.on("GET", "/v2/model-routes", Reply(body=page(SMART)))
    api.on("PATCH", "/v2/model-routes/5", Reply(body=SMART))
    known = {
        "old": {"model_name": "old", "weight": 199},
        "new": {"model_name": "new", "weight": 1},
        "gone": {"model_name": "gone", "weight": 0},
        "spare": {"model_name": "spare", "is_fallback": True},
    }

    assert cli("routes", "update", "gpt", *args).out == "Changed smart.\n"
    if "targets" in sent:
        sent = {"targets": [known[each] if isinstance(each, str) else each for each in sent["targets"]]}
    assert api.asked[-1].json == sent


def test_an_update_that_changes_nothing_or_nobody_is_told(cli: Cli, api: FakeApi) -> None:
    api.on("GET", "/v2/model-routes", Reply(body=page(SMART)))
    assert "nothing is to change" in cli("routes", "update", "smart").err
    ended = cli("routes", "update", "smatr", "--name", "x")
    assert ended.status == 1
    assert "there is no model route 'smatr' (did you mean smart?)" in ended.err


def test_who_removes_the_last_route_to_a_model_is_told(cli: Cli, api: FakeApi) -> None:
    tiny = a_route("tiny", a_target("tiny"), number=6)
    api.on(
        "GET",
        "/v2/model-routes",
        Reply(body=page(SMART, tiny)),
        Reply(body=page(SMART, tiny)),
        Reply(body=page(SMART)),
    )
    api.on("DELETE", "/v2/model-routes/6", Reply(204))

    assert cli("routes", "rm", "tiny", "nothing").status == 1
    assert not api.requests("DELETE", "/v2/model-routes/6")
    api.on("GET", "/v2/model-routes", Reply(body=page(SMART, tiny)), Reply(body=page(SMART)))
    ended = cli("routes", "rm", "tiny")
    assert ended.out == "Removed tiny.\n"
    assert "No request can reach model tiny any more" in ended.err


def test_an_alias_is_not_removed_with_its_whole_route(cli: Cli, api: FakeApi) -> None:
    routes = [SMART, a_route("chat", a_target("tiny"), number=6, aliases=["one", "the other"])]
    api.on("GET", "/v2/model-routes", Reply(body=page(*routes)))
    api.on("DELETE", "/v2/model-routes/5", Reply(204))
    api.on("DELETE", "/v2/model-routes/6", Reply(204))

    ended = cli("routes", "rm", "chat", "gpt")
    assert (ended.status, ended.out) == (1, "")
    assert "'gpt' is an alias of the model route 'smart', and nothing was removed" in ended.err
    assert '`gpustack routes update smart --alias ""`' in ended.err
    assert "`gpustack routes rm smart`" in ended.err
    assert "`gpustack routes update chat --alias 'the other'`" in cli("routes", "rm", "one").err
    assert not [each for each in api.asked if each.method == "DELETE"]


def test_a_key_for_an_alias_and_a_chat_by_it_need_no_model_of_that_name(cli: Cli, api: FakeApi) -> None:
    key = {
        "id": 3,
        "name": "k",
        "user_id": 1,
        "access_key": "0",
        "created_at": _TIME,
        "updated_at": _TIME,
        "value": "x",
    }
    api.on("GET", "/v2/models", Reply(body=page(a_model())))
    api.on("GET", "/v2/model-routes", Reply(body=page(SMART)))
    api.on("POST", "/v2/api-keys", Reply(201, key))
    assert "Warning" not in cli("keys", "create", "k", "--model", "gpt", "--model", "tiny").err
    assert "there is no model 'none' yet" in cli("keys", "create", "k", "--model", "none").err
    assert "there is no model 'none'" in cli("chat", "none", "--once", "Hello").err
    cli("chat", "gpt", "--once", "Hello")
    assert api.requests("POST", "/v1/chat/completions")


@pytest.mark.parametrize(("given", "sent"), [([""], []), (["4xx", "503"], ["4xx", "503"])])
def test_the_errors_that_lead_to_the_fallback_are_changed(
    cli: Cli, api: FakeApi, given: list[str], sent: list[str]
) -> None:
    api.on("GET", "/v2/model-routes", Reply(body=page(SMART)))
    api.on("PATCH", "/v2/model-routes/5", Reply(body=SMART))
    options = [word for code in given for word in ("--fallback-on", code)]
    assert cli("routes", "update", "smart", *options).status == 0
    assert api.asked[-1].json == {"fallback_status_codes": sent}


@pytest.mark.parametrize("code", ["200", "6xx", "5x", "500 "])
def test_what_is_no_error_of_an_engine_is_told_before_anybody_is_asked(
    cli: Cli, api: FakeApi, code: str
) -> None:
    ended = cli("routes", "create", "chat", "--target", "v1", "--fallback-on", code)
    assert ended.status != 0
    assert f"--fallback-on {code!r} is not 4xx, 5xx, or one such as 429" in ended.err
    assert not api.asked
