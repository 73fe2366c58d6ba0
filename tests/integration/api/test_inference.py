from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from gpustack.schemas import InstanceState
from support.api import Api
from support.fake_engine import (
    FakeEngine,
    dies_in_the_middle_of_a_stream,
    dies_in_the_middle_of_json,
    hangs_up_silently,
    is_loading,
    says_ok,
    streams,
    thinks,
)
from support.running import free_ports

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
PATH = "/v1/chat/completions"


def _error(answer: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


async def test_a_request_reaches_the_engine_unchanged_and_without_credentials(api: Api) -> None:
    async with FakeEngine(says_ok) as engine:
        await api.serving_model(engine.port)
        key = await api.key()
        body = b'{"model": "tiny",  "x": [1, 2.50], "stream": false}'
        headers = {
            "X-API-Key": key,
            "Cookie": "gpustack_session=secret",
            "Connection": "x-hop",
            "X-Hop": "1",
            "X-Request-Id": "req-1",
            "X-Own": "kept",
        }

        answer = await api.anyone.post(f"{PATH}?a=b", content=body, headers=headers)

        [seen] = engine.seen
    assert answer.status_code == 200
    assert answer.json()["path"] == f"{PATH}?a=b"
    assert seen.body == body
    assert seen.headers["x-own"] == "kept"
    assert seen.headers["x-request-id"] == answer.headers["x-request-id"] == "req-1"
    assert not {"x-api-key", "cookie", "authorization", "x-hop", "connection"} & seen.headers.keys()
    assert not {"set-cookie", "server", "access-control-allow-origin"} & answer.headers.keys()


@pytest.mark.parametrize(
    ("path", "at_engine"),
    [
        ("/v1/completions", "/v1/completions"),
        ("/v1/embeddings", "/v1/embeddings"),
        ("/v1/rerank", "/v1/rerank"),
        ("/v2/rerank", "/v1/rerank"),
        ("/v1-openai/chat/completions", PATH),
    ],
)
async def test_every_path_of_the_api_is_passed_on(api: Api, path: str, at_engine: str) -> None:
    async with FakeEngine(says_ok) as engine:
        await api.serving_model(engine.port)

        answer = await api.admin.post(path, json=CHAT)

    assert answer.json()["path"] == at_engine


async def test_a_stream_arrives_piece_by_piece(api: Api) -> None:
    async with FakeEngine(says_ok) as engine, asyncio.timeout(5):
        engine.script = streams(engine)
        await api.serving_model(engine.port)
        async with api.admin.stream("POST", PATH, json={**CHAT, "stream": True}) as answer:
            pieces = answer.aiter_text()
            first = await anext(pieces)  # the engine waits: a buffer anywhere would time this out
            engine.go_on.set()
            rest = "".join([piece async for piece in pieces])

    assert first == 'data: {"n": 1}\n\n'
    assert rest == 'data: {"n": 2}\n\ndata: [DONE]\n\n'


@pytest.mark.parametrize("script", [streams, thinks])
async def test_an_abort_reaches_the_engine(api: Api, script: Any) -> None:
    async with FakeEngine(says_ok) as engine, asyncio.timeout(5):
        engine.script = script(engine)
        await api.serving_model(engine.port)
        async with httpx.AsyncClient(base_url=api.url, headers=api.admin.headers) as client:
            request = asyncio.create_task(client.post(PATH, json=CHAT))
            while not engine.seen:
                await asyncio.sleep(0.005)
            request.cancel()
            await asyncio.gather(request, return_exceptions=True)

            await engine.aborted.wait()


async def test_connections_to_an_engine_are_used_again(api: Api) -> None:
    async with FakeEngine(says_ok) as engine:
        await api.serving_model(engine.port)
        for _ in range(5):
            assert (await api.admin.post(PATH, json=CHAT)).status_code == 200

        assert engine.connections == 1


async def test_requests_go_to_the_idle_instance(api: Api) -> None:
    async with FakeEngine(says_ok) as busy, FakeEngine(says_ok) as idle, asyncio.timeout(10):
        busy.script, idle.script = thinks(busy), says_ok
        await api.serving_model(busy.port, idle.port)
        waiting = []
        while not busy.seen:
            waiting.append(asyncio.create_task(api.admin.post(PATH, json=CHAT)))
            await asyncio.sleep(0.02)
        idle.seen.clear()

        for _ in range(4):
            await api.admin.post(PATH, json=CHAT)

        assert len(idle.seen) == 4
        busy.go_on.set()
        await asyncio.gather(*waiting)


async def test_another_instance_is_tried_when_one_refuses_connections(api: Api) -> None:
    async with FakeEngine(says_ok) as engine:
        await api.serving_model(free_ports(1)[0], engine.port)

        statuses = [(await api.admin.post(PATH, json=CHAT)).status_code for _ in range(3)]

    assert statuses == [200] * 3


async def test_an_engine_that_ends_before_it_answers_is_a_502(api: Api) -> None:
    async with FakeEngine(hangs_up_silently) as engine:
        await api.serving_model(engine.port)

        answer = await api.admin.post(PATH, json=CHAT)

    assert answer.status_code == 502
    assert _error(answer)["code"] == "engine_failed"
    assert len(engine.seen) == 1  # it was not asked again: it may have begun to work


async def test_nobody_listening_is_a_503(api: Api) -> None:
    await api.serving_model(free_ports(1)[0])

    answer = await api.admin.post(PATH, json=CHAT)

    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "5"
    assert "does not accept connections" in _error(answer)["message"]


async def test_an_engine_that_cannot_serve_now_is_passed_over(api: Api) -> None:
    """An engine that is loading says 503 and has done nothing: another one may be asked."""
    async with FakeEngine(is_loading) as one, FakeEngine(says_ok) as other:
        await api.serving_model(one.port, other.port)

        answers = [await api.admin.post(PATH, json=CHAT) for _ in range(4)]

    assert [each.status_code for each in answers] == [200] * 4
    assert one.seen, "it was asked"


async def test_engines_that_cannot_serve_now_are_a_503_with_their_words(api: Api) -> None:
    async with FakeEngine(is_loading) as engine:
        await api.serving_model(engine.port)

        answer = await api.admin.post(PATH, json=CHAT)

    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert "Loading model" in _error(answer)["message"]


async def test_a_stream_that_dies_ends_with_an_error_event(api: Api) -> None:
    async with FakeEngine(dies_in_the_middle_of_a_stream) as engine:
        await api.serving_model(engine.port)

        answer = await api.admin.post(PATH, json={**CHAT, "stream": True})

    first, last = [json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n\n") if line]
    assert first == {"n": 1}
    assert last["error"]["code"] == "engine_failed"


async def test_half_an_answer_is_never_taken_for_all(api: Api) -> None:
    async with FakeEngine(dies_in_the_middle_of_json) as engine:
        await api.serving_model(engine.port)

        with pytest.raises(httpx.RemoteProtocolError):
            await api.admin.post(PATH, json=CHAT)


async def test_models_lists_what_runs_and_what_the_key_may_use(api: Api) -> None:
    async with FakeEngine(says_ok) as engine:
        await api.serving_model(engine.port)
        await api.model("stopped", replicas=0)
        other = api.client(await api.key(allowed_model_names=["stopped"]))
        async with other:
            seen = (await api.admin.get("/v1/models")).json()
            seen_by_other = (await other.get("/v1-openai/models")).json()
            refused = await other.post(PATH, json=CHAT)

    assert [model["id"] for model in seen["data"]] == ["tiny"]
    assert seen["object"] == "list"
    assert seen["data"][0]["object"] == "model"
    assert seen_by_other["data"] == []
    assert refused.status_code == 404


@pytest.mark.parametrize(
    ("body", "status", "code", "words"),
    [
        (b"", 400, "invalid_request", "empty"),
        (b'{"model": "tiny"', 400, "invalid_request", "line 1, column 17"),
        (b"[]", 400, "invalid_request", "must be a JSON object"),
        (b"{}", 400, "invalid_request", 'lacks "model"'),
        (b'{"model": 3}', 400, "invalid_request", "must be a string"),
        (b'{"model": "tiny", "model": "big"}', 400, "invalid_request", "more than once"),
        (b'{"model": "tiny", "mode\\u006c": "big"}', 400, "invalid_request", "more than once"),
        (b'{"a": ' + b"[" * 100_000, 400, "invalid_request", ""),
        (b'{"model": "none"}', 404, "model_not_found", "'none' does not exist"),
    ],
)
async def test_bad_requests_in_the_shape_of_openai(
    api: Api, body: bytes, status: int, code: str, words: str
) -> None:
    answer = await api.admin.post(PATH, content=body)

    assert answer.status_code == status
    assert _error(answer)["code"] == code
    assert words in _error(answer)["message"]


async def test_ten_megabytes_are_fine_and_too_much_is_refused_at_once(api: Api) -> None:
    async with FakeEngine(says_ok) as engine:
        await api.serving_model(engine.port)
        large = await api.admin.post(PATH, json={**CHAT, "padding": "x" * 10_000_000}, timeout=30)
        too_large = await api.admin.post(PATH, content=b" " * (65 << 20), timeout=30)

    assert large.status_code == 200
    assert len(engine.seen) == 1
    assert too_large.status_code == 413
    assert _error(too_large)["code"] == "request_too_large"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", PATH, 405), ("POST", "/v1/models", 405), ("POST", "/v1/nothing", 404)],
)
async def test_wrong_paths_and_methods(api: Api, method: str, path: str, status: int) -> None:
    answer = await api.admin.request(method, path)

    assert answer.status_code == status
    assert _error(answer)["type"] == "invalid_request_error"


async def test_without_a_key(api: Api) -> None:
    answer = await api.anyone.post(PATH, json=CHAT)

    assert answer.status_code == 401
    assert _error(answer)["code"] == "invalid_api_key"


async def test_a_model_that_does_not_run_says_why_and_when_to_come_back(api: Api) -> None:
    model = await api.model()
    await api.instance(model, (await api.worker())["id"], state=InstanceState.STARTING)
    async with asyncio.timeout(5):
        while "starting" not in (obstacle := api.services.routing.table.routes["tiny"].obstacle):
            await asyncio.sleep(0.005)

    answer = await api.admin.post(PATH, json=CHAT)

    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert f"model tiny {obstacle}" in _error(answer)["message"]


async def test_stopping_leaves_a_stream_its_time_and_no_more(api: Api) -> None:
    async with FakeEngine(says_ok) as engine, asyncio.timeout(8):
        engine.script = streams(engine)
        await api.serving_model(engine.port)
        async with api.admin.stream("POST", PATH, json={**CHAT, "stream": True}) as answer:
            await anext(answer.aiter_text())

            api.serving.cancel()
            async with asyncio.timeout(4):
                await asyncio.wait({api.serving})
                await engine.aborted.wait()
