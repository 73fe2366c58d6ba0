"""Requests, and what answers and failures become."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import aclosing

import pytest

from gpustack.client import Client
from gpustack.kit import errors
from gpustack.schemas import InstanceReport, InstanceState, ModelCreate
from support.fake_api import CutOff, FakeApi, Reply, a_model, an_instance, fake_api, page


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with fake_api() as served:
        yield served


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, errors.InvalidInput),
        (401, errors.Unauthenticated),
        (403, errors.Forbidden),
        (404, errors.NotFound),
        (409, errors.Conflict),
        (413, errors.InvalidInput),
        (422, errors.InvalidInput),
        (429, errors.Throttled),
        (500, errors.GPUStackError),
        (502, errors.Unavailable),
        (503, errors.Unavailable),
    ],
)
async def test_refusals_become_errors_with_the_servers_line(
    api: FakeApi, status: int, kind: type[errors.GPUStackError]
) -> None:
    body = {"code": status, "reason": "R", "message": "what is wrong"}
    api.on("GET", "/v2/models/1", Reply(status, body, headers={"Retry-After": "7"}))

    async with Client(api.url) as client:
        with pytest.raises(errors.GPUStackError) as caught:
            await client.models.get(1)

    assert type(caught.value) is kind
    assert caught.value.message == "what is wrong"
    if isinstance(caught.value, errors.Throttled | errors.Unavailable):
        assert caught.value.retry_after == 7


async def test_an_error_in_openais_shape_is_understood(api: FakeApi) -> None:
    api.on("POST", "/v1/chat/completions", Reply(404, {"error": {"message": "no model x", "code": "c"}}))

    async with Client(api.url) as client:
        with pytest.raises(errors.NotFound, match="no model x"):
            await anext(client.chat_stream("x", []))


async def test_a_server_that_is_not_there_is_named_with_the_reason() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"

    async with Client(url, "secret-key") as client:
        with pytest.raises(errors.Unavailable) as caught:
            await client.me()

    assert caught.value.message == f"cannot reach {url}: connection refused"


async def test_a_server_that_does_not_answer_is_given_up(api: FakeApi) -> None:
    api.on("GET", "/v2/users/me", lambda asked: (api.ending.wait(5) and Reply()) or Reply())

    async with Client(api.url, timeout=0.2) as client:
        with pytest.raises(errors.Unavailable, match="did not answer in time"):
            await client.me()
    api.ending.set()


async def test_something_that_is_no_gpustack_is_told(api: FakeApi) -> None:
    api.on("GET", "/version", Reply(pieces=[b"<html>hello</html>"]))

    async with Client(api.url) as client:
        with pytest.raises(errors.GPUStackError, match="not JSON; is it a GPUStack server"):
            await client.version()


async def test_a_redirect_is_not_followed_with_the_key(api: FakeApi) -> None:
    api.on("GET", "/version", Reply(307, headers={"Location": "https://elsewhere.example/"}))

    async with Client(api.url, "key") as client:
        with pytest.raises(errors.GPUStackError, match=r"redirects to https://elsewhere\.example/"):
            await client.version()


@pytest.mark.parametrize(
    "url", ["", "ftp://host", "host:80", "http://", "http://user:pass@host", "http://h/?a=b"]
)
def test_what_is_no_servers_url_is_refused(url: str) -> None:
    with pytest.raises(errors.InvalidInput) as caught:
        Client(url)
    assert "pass@" not in caught.value.message


async def test_credentials_are_not_shown(api: FakeApi, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", logger="gpustack")
    async with Client(api.url, "secret-key") as client:
        with pytest.raises(errors.NotFound) as caught:
            await client.me()
        assert "secret-key" not in f"{client!r} {client._transport!r} {caught.value} {caplog.text}"


async def test_this_machine_is_never_asked_through_a_proxy(
    api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://192.0.2.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://192.0.2.1:9")
    api.on("GET", "/version", Reply(body={"version": "1.2.3", "git_commit": "x"}))

    async with Client(api.url) as client:
        assert (await client.version()).version == "1.2.3"


async def test_other_machines_are_asked_through_the_proxy(
    api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", api.url)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    api.on("GET", "/version", Reply(body={"version": "1.2.3", "git_commit": "x"}))

    async with Client("http://gpustack.example:9080") as client:
        await client.version()

    assert api.asked[0].headers["host"] == "gpustack.example:9080"


async def test_only_fields_that_were_set_are_sent(api: FakeApi) -> None:
    api.on("POST", "/v2/model-instances/11/report", Reply(body=an_instance(state="running")))
    api.on("POST", "/v2/models", Reply(201, a_model()))

    async with Client(api.url) as client:
        await client.report_instance(11, InstanceReport(state=InstanceState.RUNNING, pid=None))
        await client.models.create(ModelCreate(name="tiny", local_path="/m/tiny.gguf"))

    assert api.asked[0].json == {"state": "running", "pid": None}
    assert api.asked[1].json == {"name": "tiny", "local_path": "/m/tiny.gguf"}


async def test_a_model_is_found_by_its_whole_name_only(api: FakeApi) -> None:
    api.on("GET", "/v2/models", Reply(body=page(a_model(id=1, name="tiny-2"), a_model(id=2, name="tiny"))))

    async with Client(api.url) as client:
        assert (await client.models.by_name("tiny")).id == 2
        with pytest.raises(errors.NotFound, match="'tin'"):
            await client.models.by_name("tin")


async def test_a_newer_servers_answer_with_more_fields_is_read(api: FakeApi) -> None:
    api.on("GET", "/v2/models/1", Reply(body=a_model(shine="bright")))

    async with Client(api.url) as client:
        assert (await client.models.get(1)).name == "tiny"


async def test_a_chat_streams_text_and_usage(api: FakeApi) -> None:
    pieces = [
        b'data: {"choices": [{"delta": {"role": "assistant", "content": null}}]}\n\n',
        b'data: {"choices": [{"delta": {"content": "He"}}]}\n\ndata: {"choi',
        b'ces": [{"delta": {"content": "y"}, "finish_reason": "stop"}]}\n\n: comment\n\n',
        b'data: {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}\n\ndata: [DONE]\n\n',
    ]
    api.on("POST", "/v1/chat/completions", Reply(pieces=pieces))

    async with Client(api.url) as client, aclosing(client.chat_stream("tiny", [], max_tokens=2)) as stream:
        deltas = [delta async for delta in stream]

    assert "".join(delta.text for delta in deltas) == "Hey"
    assert deltas[2].finish_reason == "stop"
    assert (deltas[-1].prompt_tokens, deltas[-1].completion_tokens) == (3, 2)
    assert api.asked[0].json["max_tokens"] == 2


@pytest.mark.parametrize(
    ("last", "said"),
    [(b'data: {"error": {"message": "out of memory"}}\n\n', "out of memory"), (b"", "broke off")],
)
async def test_a_chat_that_fails_on_its_way_says_so(api: FakeApi, last: bytes, said: str) -> None:
    def pieces() -> Iterator[bytes]:
        yield b'data: {"choices": [{"delta": {"content": "He"}}]}\n\n'
        if not last:
            raise CutOff
        yield last

    api.on("POST", "/v1/chat/completions", Reply(pieces=pieces()))

    async with Client(api.url) as client, aclosing(client.chat_stream("tiny", [])) as stream:
        assert (await anext(stream)).text == "He"
        with pytest.raises(errors.GPUStackError, match=said):
            await anext(stream)


async def test_a_backend_is_described_by_a_yaml_text(api: FakeApi) -> None:
    row = {
        "id": 1,
        "backend_name": "m",
        "default_version": "",
        "plugin": "",
        "distribution": "",
        "distribution_version": "",
    }
    api.on("POST", "/v2/inference-backends/from-yaml", Reply(201, row))

    async with Client(api.url) as client:
        made = await client.backends.create_from_yaml("backend_name: m\n")

    assert made.backend_name == "m"
    [asked] = api.asked
    assert asked.body == b'{"content":"backend_name: m\\n"}'


async def test_an_older_server_leaves_how_an_instance_is_run_to_the_plugin(api: FakeApi) -> None:
    api.on("GET", "/v2/models/1", Reply(body=a_model(id=1)))

    async with Client(api.url) as client:
        model = await client.models.for_instance(1, 7)

    assert (model.served_by, model.config.runner, model.config.run_command) == ("", "process", "")
