from __future__ import annotations

from typing import Any

import pytest

from support.api import Api

MODEL: dict[str, Any] = {"name": "x", "local_path": "/x"}
BIG = b'{"name": "' + b"x" * 10_000_000 + b'"}'


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("GET", "/nowhere", None, 404, "there is no /nowhere"),
        ("PATCH", "/v2/models", None, 405, "/v2/models does not take PATCH"),
        ("POST", "/v2/models", b'{"name": }', 400, "not valid JSON: expected value at line 1 column 10"),
        ("POST", "/v2/models", b"", 400, "not valid JSON"),
        ("POST", "/v2/models", b"\xff\xfe", 400, "not valid JSON"),
        ("POST", "/v2/models", b"[1]", 400, "must be a JSON object"),
        ("POST", "/v2/models", b"[" * 100_000, 400, "not valid JSON"),
        (
            "POST",
            "/v2/models",
            b'{"name": "x", "local_path": "/x", "colour": 1}',
            400,
            "colour: there is no such",
        ),
        ("POST", "/v2/models", b'{"local_path": "/x"}', 400, "name: is required"),
        ("POST", "/v2/models", b'{"name": "x", "local_path": "x"}', 400, "is not absolute"),
        (
            "POST",
            "/v2/models",
            b'{"name": "x", "local_path": "/x", "backend": "no"}',
            400,
            "installed are any",
        ),
        ("POST", "/v2/models", BIG, 413, "larger than 1.0 MiB"),
        ("POST", "/auth/login", BIG, 413, "larger than 1.0 MiB"),
        ("PUT", "/v2/models/7", b'{"local_path": "/x"}', 404, "there is no model 7"),
        ("GET", "/v2/models/7", None, 404, "there is no model 7"),
        ("GET", "/v2/models/99999999999999999999", None, 404, "there is no model"),
        ("GET", "/v2/models/seven", None, 404, "there is no /v2/models/seven"),
        ("GET", "/v2/models?page=0", None, 400, "page"),
        ("GET", "/v2/models?page=x", None, 400, "query parameter page"),
        ("GET", "/v2/models?perPage=100000", None, 400, "query parameter perPage"),
        ("GET", "/v2/models?sort_by=password", None, 400, "cannot sort by 'password'"),
        ("GET", "/v2/model-instances?state=happy", None, 400, "query parameter state"),
        ("GET", "/v2/model-instances/1/logs", None, 404, "there is no"),
        ("DELETE", "/v2/workers/3", None, 404, "there is no worker 3"),
        ("POST", "/v2/worker-heartbeat", b"{}", 403, "only workers"),
    ],
)
async def test_bad_input_gets_one_clear_line(
    api: Api, method: str, path: str, body: bytes | None, status: int, words: str
) -> None:
    answer = await api.admin.request(method, path, content=body)

    assert answer.status_code == status, answer.text
    document = answer.json()
    assert set(document) == {"code", "reason", "message"}
    assert document["code"] == status
    assert words in document["message"]
    assert "\n" not in document["message"]
    assert "Traceback" not in answer.text


async def test_all_problems_are_named_at_once(api: Api) -> None:
    answer = await api.admin.post(
        "/v2/models", json={"name": "a b", "replicas": -1, "env": {"1x": ""}, "local_path": "/x", "zzz": 1}
    )

    message = answer.json()["message"]
    assert all(f"{field}: " in message for field in ("name", "replicas", "env", "zzz")), message


async def test_a_second_model_of_that_name_is_a_conflict(api: Api) -> None:
    await api.model("x")

    answer = await api.admin.post("/v2/models", json=MODEL)

    assert answer.status_code == 409


async def test_what_nobody_foresaw_is_logged_once_and_shows_nothing(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def breaks(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(api.services.store.models, "list", breaks)

    answer = await api.admin.get("/v2/models")

    assert answer.status_code == 500
    assert answer.json()["message"] == "the server failed to answer; its log says why"
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == [
        "GET /v2/models failed"
    ]


async def test_a_missing_credential_says_how_to_send_one(api: Api) -> None:
    answer = await api.anyone.get("/v2/models")

    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert "sign in" in answer.json()["message"]
