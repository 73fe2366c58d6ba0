"""The whole data path in one process: real sockets on both sides, engines that answer, fail and hang."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from gpustack.dataplane.choosing import Hints, Known, Lease
from gpustack.dataplane.cors import CorsPolicy
from gpustack.dataplane.http import Reply, Request
from gpustack.plugin.routing import Limits as KeyLimits
from gpustack.plugin.routing import (
    Route,
    Timeouts,
)
from gpustack.testing.fakes.engine import Behaviour, FakeEngine
from support.gateway import CHAT, KEY, Running, a_gateway, a_route, a_target, an_engine, nobody


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with a_gateway(tmp_path) as gateway:
        yield gateway


# A word of answers ----------------------------------------------------------------------------------------


async def test_a_chat_is_answered_and_its_tokens_are_written_down(running: Running) -> None:
    with FakeEngine() as engine:
        running.apply(a_route(a_target(4, engine)))
        answer = await running.client.post("/v1/chat/completions", json=CHAT)
        assert answer.status_code == 200
        told = answer.json()["usage"]
    (record,) = await running.records()
    assert (record.prompt_tokens, record.completion_tokens) == (
        told["prompt_tokens"],
        told["completion_tokens"],
    )
    assert (record.user_id, record.key_id, record.instance_id) == (1, 7, 4)
    assert (record.route, record.model, record.operation) == ("tiny", "tiny", "/v1/chat/completions")
    assert (record.status, record.estimated) == (200, False)
    assert answer.headers["x-request-id"]


async def test_a_stream_gets_its_usage_counted_and_the_client_sees_nothing_of_it(running: Running) -> None:
    with FakeEngine() as engine:
        running.apply(a_route(a_target(1, engine)))
        asked = {**CHAT, "stream": True}
        plain = await running.client.post("/v1/chat/completions", json=asked)
        wanted = await running.client.post(
            "/v1/chat/completions", json={**asked, "stream_options": {"include_usage": True}}
        )
        assert [json.loads(body)["stream_options"] for body in sent(engine)] == [{"include_usage": True}] * 2
    assert '"usage": {' not in plain.text.replace('"usage":{', '"usage": {')
    assert plain.text.rstrip().endswith("[DONE]")
    assert '"prompt_tokens"' in wanted.text
    first, second = await running.records(2)
    assert first.completion_tokens == second.completion_tokens > 0
    assert not first.estimated
    assert first.time_to_first_token is not None


def sent(engine: FakeEngine) -> list[str]:
    """Return the JSON bodies that the engine was sent."""
    return [json.dumps(body) for _, body in engine.requests]


async def test_an_alias_and_a_served_name_change_nothing_else_of_the_body(running: Running) -> None:
    with FakeEngine() as engine:
        running.apply(
            a_route(a_target(1, engine, served_name="tiny-q4", model="tiny-model"), aliases=("gpt-4",))
        )
        answer = await running.client.post("/v1/chat/completions", json={**CHAT, "model": "gpt-4", "seed": 1})
        assert answer.status_code == 200
        ((_, body),) = engine.requests
    assert body == {**CHAT, "model": "tiny-q4", "seed": 1}
    (record,) = await running.records()
    assert (record.route, record.model) == ("tiny", "tiny-model")


async def test_models_are_listed_by_all_their_names_and_shown(running: Running) -> None:
    with FakeEngine() as engine:
        running.apply(a_route(a_target(1, engine), aliases=("gpt-4",)), a_route(name="asleep"), allowed=None)
        listed = (await running.client.get("/v1/models")).json()
        assert [each["id"] for each in listed["data"]] == ["gpt-4", "tiny"]
        assert (await running.client.get("/v1/models/gpt-4")).json()["id"] == "gpt-4"
        assert (await running.client.get("/v1/models/other")).status_code == 404


@pytest.mark.parametrize("header", ["authorization", "x-api-key"])
async def test_who_shows_no_key_or_a_wrong_one_is_refused(running: Running, header: str) -> None:
    running.apply(a_route())
    async with httpx.AsyncClient(base_url=running.url) as nobody:
        for value in ("Bearer sk-wrong", "Bearer", "sk-wrong", ""):
            answer = await nobody.post("/v1/chat/completions", json=CHAT, headers={header: value})
            assert answer.status_code == 401
            assert answer.json()["error"]["type"] == "authentication_error"


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/v1/chat/completions", {**CHAT, "model": "other"}, 404, "model_not_found"),
        ("/v1/chat/completions", {"messages": []}, 400, "invalid_request"),
        ("/v1/chat/completions", [], 400, "invalid_request"),
        ("/v1/nothing", CHAT, 404, "unknown_path"),
        ("/v1/embeddings", {"model": "stopped", "input": "x"}, 503, "model_not_ready"),
        ("/v1/audio/transcriptions", {"model": "tiny"}, 400, "invalid_request"),
    ],
)
async def test_what_cannot_be_is_refused_in_one_line(
    running: Running, path: str, body: object, status: int, code: str
) -> None:
    running.apply(a_route(a_target(1, 9)), Route(name="stopped", created=1, obstacle="is stopped"))
    answer = await running.client.post(path, json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert "\n" not in answer.json()["error"]["message"]


async def test_a_model_that_another_key_may_use_does_not_exist_for_this_one(running: Running) -> None:
    with FakeEngine() as engine:
        running.apply(a_route(a_target(1, engine)), allowed=frozenset({"other"}))
        assert (await running.client.post("/v1/chat/completions", json=CHAT)).status_code == 404
        assert (await running.client.get("/v1/models")).json()["data"] == []


async def test_anthropics_clients_get_errors_in_their_own_shape(running: Running) -> None:
    running.apply(a_route())
    answer = await running.client.post("/v1/messages", json={"model": "other", "messages": []})
    assert answer.json()["type"] == "error"
    assert answer.json()["error"]["type"] == "not_found_error"


async def test_a_form_names_its_model_too(running: Running) -> None:
    async with an_engine(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 13\r\n\r\n"
                         b'{"text":"hi"}') as port:  # fmt: skip
        running.apply(a_route(a_target(1, port, served_name="whisper")))
        answer = await running.client.post(
            "/v1/audio/transcriptions", data={"model": "tiny"}, files={"file": ("a.wav", b"\0" * 1000)}
        )
    assert answer.json() == {"text": "hi"}


async def test_whatever_else_an_engine_offers_is_behind_the_proxy(running: Running) -> None:
    with FakeEngine() as engine:
        running.apply(a_route(a_target(1, engine)))
        answer = await running.client.get("/model/proxy/tiny/metrics")
        named = await running.client.get("/model/proxy/health", headers={"x-gpustack-model": "tiny"})
    assert answer.status_code == 200
    assert "requests" in answer.text
    assert named.status_code == 200


# Engines in trouble ---------------------------------------------------------------------------------------


async def test_an_instance_that_is_gone_is_passed_by(running: Running) -> None:
    with FakeEngine() as engine:
        running.apply(a_route(a_target(1, await nobody()), a_target(2, engine)))
        answers = [await running.client.post("/v1/chat/completions", json=CHAT) for _ in range(6)]
    assert [each.status_code for each in answers] == [200] * 6
    assert {each.instance_id for each in await running.records(6)} == {2}


async def test_one_that_ends_in_the_middle_of_a_request_takes_no_other_with_it(running: Running) -> None:
    """What made one engine crash must not reach the next."""
    asked = []

    async def crash(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.append(1)
        writer.close()

    async with an_engine(crash) as one, an_engine(crash) as other:
        running.apply(a_route(a_target(1, one), a_target(2, other)))
        answer = await running.client.post("/v1/chat/completions", json=CHAT)
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "engine_failed")
    assert len(asked) == 1
    (record,) = await running.records()
    assert record.status == 502


async def test_embeddings_are_asked_again_elsewhere(running: Running) -> None:
    async def crash(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    async with an_engine(crash) as broken:
        with FakeEngine() as engine:
            running.apply(
                replace(a_route(a_target(1, broken), a_target(2, engine)), categories=("embedding",))
            )
            answers = [
                await running.client.post("/v1/embeddings", json={"model": "tiny", "input": "x"})
                for _ in range(4)
            ]
    assert [each.status_code for each in answers] == [200] * 4


async def test_one_that_still_loads_is_passed_by(running: Running) -> None:
    busy = (
        b"HTTP/1.1 503 Busy\r\ncontent-type: application/json\r\ncontent-length: 22\r\n\r\n"
        b'{"message": "loading"}'
    )
    async with an_engine(busy) as loading:
        with FakeEngine() as engine:
            running.apply(a_route(a_target(1, loading), a_target(2, engine)))
            assert (await running.client.post("/v1/chat/completions", json=CHAT)).status_code == 200
        running.apply(a_route(a_target(1, loading)))
        answer = await running.client.post("/v1/chat/completions", json=CHAT)
    assert answer.status_code == 503
    assert "loading" in answer.json()["error"]["message"]
    assert answer.headers["retry-after"]


async def test_an_engines_own_error_comes_in_the_usual_shape(running: Running) -> None:
    said = b'{"detail":"context is too long"}'
    refusal = b"HTTP/1.1 400 Bad\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
        len(said),
        said,
    )
    async with an_engine(refusal) as port:
        running.apply(a_route(a_target(1, port)))
        answer = await running.client.post("/v1/chat/completions", json=CHAT)
    assert answer.json()["error"]["message"] == "context is too long"


@pytest.mark.parametrize(
    ("path", "category"),
    [
        ("/v1/score", "llm"),
        ("/v1/audio/speech", "llm"),
        ("/v1/images/generations", "embedding"),
        ("/v1/chat/completions", "embedding"),
    ],
)
async def test_what_a_kind_of_model_cannot_do_is_refused_before_an_engine_is_asked(
    running: Running, path: str, category: str
) -> None:
    with FakeEngine() as engine:
        running.apply(replace(a_route(a_target(1, engine)), categories=(category,)))
        answer = await running.client.post(path, json=CHAT)
        assert not engine.requests
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "unsupported_by_model")
    assert path in error["message"]
    assert category in error["message"]


@pytest.mark.parametrize(
    ("said", "clear"),
    [
        (b'{"error":{"code":404,"message":"File Not Found","type":"not_found_error"}}', True),
        (b'{"detail":"Not Found"}', True),
        (b"", True),
        (b'{"error":{"message":"The model `x` does not exist."}}', False),
    ],
)
async def test_an_engine_without_such_a_path_is_told_in_words_of_ours(
    running: Running, said: bytes, clear: bool
) -> None:
    refusal = b"HTTP/1.1 404 No\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
        len(said),
        said,
    )
    async with an_engine(refusal) as port:
        running.apply(a_route(a_target(1, port)))
        answer = await running.client.post("/v1/moderations", json={"model": "tiny", "input": "x"})
        proxied = await running.client.post("/model/proxy/tiny/own/path", json={})
    error = answer.json()["error"]
    if clear:
        assert (answer.status_code, error["code"]) == (400, "unsupported_by_model")
        assert "the engine of model tiny does not serve /v1/moderations" in error["message"]
    else:
        assert (answer.status_code, error["message"]) == (404, "The model `x` does not exist.")
    assert proxied.status_code == 404, (
        "what a client asks of an engine by its own path is the engine's to answer"
    )


async def test_a_prompt_that_was_cut_off_counts_by_its_text_or_as_the_engine_told(running: Running) -> None:
    asked = {**CHAT, "stream": True, "stop": ["x" * 200], "metadata": {"note": "y" * 400}}
    with FakeEngine(Behaviour(cut_after=2)) as engine:
        running.apply(a_route(a_target(1, engine)))
        await running.client.post("/v1/chat/completions", json=asked)
    (record,) = await running.records()
    assert (record.status, record.estimated) == (502, True)
    assert 3 <= record.prompt_tokens <= 12, "three words and a template"
    begin = {"type": "message_start", "message": {"usage": {"input_tokens": 12, "output_tokens": 1}}}
    delta = {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "word"}}
    events = b"".join(
        b"event: %b\ndata: %b\n\n" % (each["type"].encode(), json.dumps(each).encode())  # type: ignore[attr-defined]
        for each in (begin, delta, delta)
    )
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 9999\r\n\r\n"
    async with an_engine(head + events) as port:
        running.apply(a_route(a_target(1, port)))
        await running.client.post("/v1/messages", json=asked)
    (record,) = await running.records()
    assert (record.status, record.prompt_tokens, record.completion_tokens) == (502, 12, 2)


async def test_a_picture_in_a_prompt_that_was_cut_off_is_no_text(running: Running) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 200_000}}
    asked = {**CHAT, "stream": True, "messages": [{"role": "user", "content": [picture]}]}
    with FakeEngine(Behaviour(cut_after=2, answer="a b c d")) as engine:
        running.apply(a_route(a_target(1, engine)))
        await running.client.post("/v1/chat/completions", json=asked)
    (record,) = await running.records()
    assert (record.status, record.estimated) == (502, True)
    assert record.prompt_tokens < 5000


async def test_anthropics_clients_get_the_models_in_their_own_shape(running: Running) -> None:
    with FakeEngine() as engine:
        running.apply(a_route(a_target(1, engine), aliases=("claude",)))
        own = {"anthropic-version": "2023-06-01", "x-api-key": KEY}
        async with httpx.AsyncClient(base_url=running.url, headers=own) as client:
            listed = (await client.get("/v1/models")).json()
            one = (await client.get("/v1/models/claude")).json()
            missing = await client.get("/v1/models/other")
            wrong = await client.get("/v1/models", headers={"x-api-key": "sk-wrong"})
            usual = (await client.get("/v1-openai/models")).json()
    assert [each["id"] for each in listed["data"]] == ["claude", "tiny"]
    assert (listed["first_id"], listed["last_id"], listed["has_more"]) == ("claude", "tiny", False)
    assert one == listed["data"][0]
    assert one == {
        "type": "model",
        "id": "claude",
        "display_name": "claude",
        "created_at": "1970-01-01T00:00:05Z",
    }
    for answer, status, kind in ((missing, 404, "not_found_error"), (wrong, 401, "authentication_error")):
        assert answer.status_code == status
        assert (answer.json()["type"], answer.json()["error"]["type"]) == ("error", kind)
    assert usual["object"] == "list"


async def test_the_choice_of_an_instance_knows_how_long_an_answer_may_be(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    most: list[int] = []
    pick = running.gateway.chooser.pick_of

    def picking(known: Known, hints: Hints) -> Lease | None:
        most.append(hints.max_tokens)
        return pick(known, hints)

    monkeypatch.setattr(running.gateway.chooser, "pick_of", picking)
    with FakeEngine() as engine:
        running.apply(a_route(a_target(1, engine)))
        for more in ({"max_tokens": 3}, {}):
            await running.client.post("/v1/chat/completions", json={**CHAT, **more})
    assert most == [3, 0]


async def test_a_stream_that_breaks_off_says_so_and_is_counted_by_its_pieces(running: Running) -> None:
    with FakeEngine(Behaviour(cut_after=2)) as engine:
        running.apply(a_route(a_target(1, engine)))
        answer = await running.client.post("/v1/chat/completions", json={**CHAT, "stream": True})
    assert '"engine_failed"' in answer.text.splitlines()[-1] or '"engine_failed"' in answer.text
    assert "[DONE]" not in answer.text
    (record,) = await running.records()
    assert (record.status, record.estimated) == (502, True)
    assert record.completion_tokens >= 1


async def test_a_client_that_leaves_ends_the_engines_work_and_pays_for_what_came(running: Running) -> None:
    with FakeEngine(Behaviour(tokens_per_second=20, answer="word " * 200)) as engine:
        running.apply(a_route(a_target(1, engine)))
        async with running.client.stream(
            "POST", "/v1/chat/completions", json={**CHAT, "stream": True}
        ) as answer:
            seen = 0
            async for line in answer.aiter_lines():
                seen += line.startswith("data:")
                if seen == 4:
                    break
        (record,) = await running.records()
    assert (record.status, record.estimated) == (499, True)
    assert 2 <= record.completion_tokens <= 10
    assert not running.upstream.active


async def test_a_key_that_is_revoked_ends_its_streams_where_that_is_asked_for(running: Running) -> None:
    with FakeEngine(Behaviour(tokens_per_second=50, answer="word " * 500)) as engine:
        running.apply(a_route(a_target(1, engine)))
        asking = asyncio.create_task(
            running.client.post("/v1/chat/completions", json={**CHAT, "stream": True})
        )
        while not running.gateway.open or not next(iter(running.gateway.open)).reader:
            await asyncio.sleep(0.01)
        running.gateway.close_keys({99})
        assert running.gateway.open
        running.gateway.close_keys({7})
        answer = await asking
    assert '"invalid_api_key"' in answer.text
    assert not running.gateway.open
    (record,) = await running.records()
    assert (record.status, record.estimated) == (401, True)


async def test_an_engine_that_says_nothing_is_given_up(running: Running) -> None:
    with FakeEngine(Behaviour(hang_from=1)) as engine:
        running.apply(a_route(a_target(1, engine), timeouts=Timeouts(first_byte=0.2)))
        answer = await running.client.post("/v1/chat/completions", json=CHAT)
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "engine_timeout")


async def test_another_model_stands_in_for_one_that_does_not_answer(running: Running) -> None:
    with FakeEngine() as engine:
        running.apply(
            a_route(a_target(1, await nobody()), fallback="small"),
            a_route(a_target(2, engine, served_name="small"), name="small"),
            a_route(name="away", fallback="small", obstacle="is stopped"),
        )
        for name in ("tiny", "away"):
            answer = await running.client.post("/v1/chat/completions", json={**CHAT, "model": name})
            assert answer.status_code == 200, answer.text
        assert [body["model"] for _, body in engine.requests] == ["small", "small"]


# Waiting --------------------------------------------------------------------------------------------------


async def test_a_limit_of_a_key_is_held(running: Running) -> None:
    with FakeEngine() as engine:
        running.apply(a_route(a_target(1, engine)), limits=KeyLimits(requests_per_minute=2))
        answers = [await running.client.post("/v1/chat/completions", json=CHAT) for _ in range(3)]
    assert [each.status_code for each in answers] == [200, 200, 429]
    assert int(answers[2].headers["retry-after"]) >= 1


async def test_who_waits_for_a_turn_is_told_how_long_that_was(running: Running) -> None:
    with FakeEngine(Behaviour(time_to_first_token=0.1)) as engine:
        running.apply(a_route(a_target(1, engine, slots=1)))
        answers = await asyncio.gather(
            *(running.client.post("/v1/chat/completions", json=CHAT) for _ in range(3))
        )
    waited = sorted(float(each.headers.get("x-queue-time", 0)) for each in answers)
    assert waited[0] == 0
    assert waited[2] > waited[1] > 0


async def test_a_stream_that_waits_for_a_model_to_start_is_kept_alive(tmp_path: Path) -> None:
    async with a_gateway(tmp_path, hold_seconds=0.05) as running:
        with FakeEngine() as engine:
            asleep = a_route(asleep=True)
            running.apply(asleep)
            asking = asyncio.create_task(
                running.client.post("/v1/chat/completions", json={**CHAT, "stream": True})
            )
            await asyncio.sleep(0.3)
            assert not asking.done()
            running.apply(replace(asleep, targets=(a_target(1, engine),)))
            answer = await asking
    assert answer.status_code == 200
    assert answer.text.startswith(": waiting\n\n")
    assert answer.text.rstrip().endswith("[DONE]")


# Pages and everything else --------------------------------------------------------------------------------


async def test_a_page_of_another_origin_may_ask_where_the_settings_say_so(tmp_path: Path) -> None:
    policy = CorsPolicy(
        allow_origins=("https://a.example",), allow_methods=("POST",), allow_headers=("Authorization",)
    )
    async with a_gateway(tmp_path, cors=policy) as running:
        with FakeEngine() as engine:
            running.apply(a_route(a_target(1, engine)))
            question = {
                "origin": "https://a.example",
                "access-control-request-method": "POST",
                "access-control-request-headers": "authorization",
            }
            async with httpx.AsyncClient() as page:
                allowed = await page.options(f"{running.url}/v1/chat/completions", headers=question)
            assert allowed.headers["access-control-allow-origin"] == "https://a.example"
            for origin, expected in (("https://a.example", "https://a.example"), ("https://b.example", None)):
                answer = await running.client.post(
                    "/v1/chat/completions", json=CHAT, headers={"origin": origin}
                )
                assert answer.headers.get("access-control-allow-origin") == expected
                assert answer.headers["vary"] == "Origin"


async def test_what_is_not_for_models_goes_to_the_server(tmp_path: Path) -> None:
    seen: list[tuple[bytes, bytes]] = []

    def server(request: Request, reply: Reply) -> None:
        seen.append((request.method, request.path))
        reply.answer(200, [(b"content-type", b"text/plain")], b"the server")

    async with a_gateway(tmp_path, backstage=server) as running:
        running.apply(a_route())
        for method, path in (("GET", "/"), ("POST", "/v2/models"), ("GET", "/ui/index.html")):
            assert (await running.client.request(method, path)).text == "the server"
        async with httpx.AsyncClient(base_url=running.url) as browser:
            cookie = await browser.get("/v1/models", headers={"cookie": "gpustack_session=abc"})
        assert cookie.text == "the server"
    assert seen == [
        (b"GET", b"/"),
        (b"POST", b"/v2/models"),
        (b"GET", b"/ui/index.html"),
        (b"GET", b"/v1/models"),
    ]


async def test_a_large_body_holds_up_nobody_else(running: Running) -> None:
    with FakeEngine() as engine:
        running.apply(a_route(a_target(1, engine)))
        large = json.dumps({"pad": "x" * (8 << 20), **CHAT}).encode()
        sending = asyncio.create_task(
            running.client.post(
                "/v1/chat/completions", content=large, headers={"content-type": "application/json"}
            )
        )
        answers = [await running.client.post("/v1/chat/completions", json=CHAT) for _ in range(5)]
        assert [each.status_code for each in answers] == [200] * 5
        assert (await sending).status_code == 200
