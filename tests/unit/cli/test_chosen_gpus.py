"""Choosing GPUs by hand on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support.fake_api import FakeApi, Reply, a_model, page

Cli = Any
TWO = ["--gpu", "box:cuda:0", "--gpu", "box:cuda:1"]
CHOSEN = {"gpu_ids": ["box:cuda:0", "box:cuda:1"], "gpus_per_replica": None}


def sent(api: FakeApi, method: str) -> Any:
    (body,) = [json.loads(each.body) for each in api.asked if each.method == method]
    return body.get("gpu_selector", "nothing")


@pytest.fixture
def model_file(tmp_path: Path) -> str:
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    return str(tmp_path / "tiny.gguf")


@pytest.mark.parametrize(
    ("arguments", "body"),
    [
        (TWO, {"gpu_ids": CHOSEN["gpu_ids"]}),
        ([*TWO, "--gpus-per-replica", "1"], {**CHOSEN, "gpus_per_replica": 1}),
        ([*TWO, "--gpus-per-replica", "0"], CHOSEN),
        ([], "nothing"),
    ],
)
def test_deploy_sends_the_choice(
    cli: Cli, api: FakeApi, model_file: str, arguments: list[str], body: Any
) -> None:
    api.on("POST", "/v2/models", Reply(201, a_model()))
    assert cli("deploy", model_file, "--no-wait", *arguments).status == 0
    assert sent(api, "POST") == body


@pytest.mark.parametrize(
    ("arguments", "body"),
    [
        (["--gpu", "box:cuda:3"], {"gpu_ids": ["box:cuda:3"]}),
        (["--gpus-per-replica", "2"], {"gpus_per_replica": 2}),
        (["--gpus-per-replica", "0"], {"gpus_per_replica": None}),
        (["--gpu", ""], None),
        (["--replicas", "2"], "nothing"),
    ],
)
def test_update_sends_only_what_changes(cli: Cli, api: FakeApi, arguments: list[str], body: Any) -> None:
    api.on("GET", "/v2/models", Reply(body=page(a_model(gpu_selector=CHOSEN))))
    api.on("PATCH", "/v2/models/1", Reply(body=a_model()))
    assert cli("update", "tiny", "--no-wait", *arguments).status == 0
    assert sent(api, "PATCH") == body


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--gpu", "box"], "--gpu: 'box' is no GPU: they are named worker:type:index, such as box:cuda:0"),
        (["--gpu", "b:c:0", "--gpu", "b:c:0"], "--gpu: 'b:c:0' is named twice"),
        ([*TWO, "--gpus-per-replica", "3"], "--gpu: gpus_per_replica 3 is more than the number of GPUs"),
        (["--gpus-per-replica", "3"], "--gpus-per-replica goes with --gpu"),
        (["--gpu", ""], "--gpu: '' is no GPU"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    cli: Cli, api: FakeApi, model_file: str, arguments: list[str], line: str
) -> None:
    answer = cli("deploy", model_file, *arguments)
    assert answer.status == 2
    assert line in answer.err
    assert not [each for each in api.asked if each.method == "POST"]


def test_update_refuses_what_the_model_cannot_be(cli: Cli, api: FakeApi) -> None:
    api.on("GET", "/v2/models", Reply(body=page(a_model())))
    answer = cli("update", "tiny", "--gpus-per-replica", "2")
    assert (answer.status, "no GPU is named; leave gpu_selector null" in answer.err) == (2, True)
    answer = cli("update", "tiny", "--gpu", "", "--gpus-per-replica", "2")
    assert (answer.status, "does not go with" in answer.err) == (2, True)
    assert not [each for each in api.asked if each.method == "PATCH"]


def test_show_names_the_choice(cli: Cli, api: FakeApi) -> None:
    api.on("GET", "/v2/models", Reply(body=page(a_model(gpu_selector={**CHOSEN, "gpus_per_replica": 1}))))
    api.on("GET", "/v2/model-instances", Reply(body=page()))
    api.on("GET", "/v2/model-instance-events", Reply(body=page()))
    out = cli("show", "tiny").out
    assert "only box:cuda:0, box:cuda:1, 1 for each copy" in out


def test_ids_are_completed(api: FakeApi) -> None:
    import click

    from gpustack.cli import complete

    gpus = [{"id": f"box:cuda:{index}"} for index in (1, 0)] + [{"id": "other:cuda:0"}]
    api.on("GET", "/v2/gpu-devices", Reply(body=page(*gpus)))
    context = click.Context(click.Command("deploy"))
    context.params = {"server": api.url, "api_key": "gpustack_a_b", "gpu_ids": ("box:cuda:1",)}
    option = click.Option(["--gpu", "gpu_ids"], multiple=True)

    assert complete.gpus(context, option, "b") == ["box:cuda:0"]
    assert complete.gpus(context, option, "x") == []
