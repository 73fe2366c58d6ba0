from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from gpustack.kit.errors import Throttled, Unavailable
from gpustack.plugin.routing import digest, of_session
from gpustack.server.auth.passwords import Passwords
from support.api import PASSWORD, Api, running_api

SIGN_IN = {"username": "admin", "password": PASSWORD}


async def test_a_form_signs_in_and_the_cookie_is_enough_afterwards(api: Api) -> None:
    answer = await api.anyone.post("/auth/login", data=SIGN_IN)

    assert answer.status_code == 200
    assert answer.json() == {"username": "admin", "is_admin": True, "require_password_change": False}
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("gpustack_session=")
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    assert "Secure" not in cookie
    assert (await api.anyone.get("/v2/users/me")).json()["username"] == "admin"
    assert (await api.anyone.get("/v1/models")).status_code == 200


async def test_json_signs_in_too_and_signing_out_ends_the_session(api: Api) -> None:
    cookie = (await api.anyone.post("/auth/login", json=SIGN_IN)).cookies["gpustack_session"]

    assert (await api.anyone.post("/auth/logout")).json() == {"logout_url": None}

    answer = await api.anyone.get("/v2/users/me", headers={"Cookie": f"gpustack_session={cookie}"})
    assert answer.status_code == 401


async def test_the_generated_password_is_for_the_owner_only_and_has_to_be_changed(
    database_url: str, tmp_path: Path
) -> None:
    async with running_api(database_url, tmp_path, bootstrap_password=None) as api:
        file = api.data_dir / "initial_admin_password"
        answer = await api.anyone.post(
            "/auth/login", json={"username": "admin", "password": file.read_text().strip()}
        )

        assert file.stat().st_mode & 0o777 == 0o600
        assert answer.json()["require_password_change"] is True


async def test_a_given_password_is_written_nowhere(api: Api) -> None:
    assert not (api.data_dir / "initial_admin_password").exists()
    assert (api.data_dir / "token").stat().st_mode & 0o777 == 0o600
    assert (api.data_dir / "run" / "cli_token").stat().st_mode & 0o777 == 0o600


async def test_changing_the_password_ends_other_sessions_only(api: Api) -> None:
    async with httpx.AsyncClient(base_url=api.url) as other:
        await other.post("/auth/login", json=SIGN_IN)
        await api.anyone.post("/auth/login", json=SIGN_IN)
        change = {"current_password": PASSWORD, "new_password": "battery staple"}

        assert (await api.anyone.post("/auth/update-password", json=change)).status_code == 204

        assert (await api.anyone.get("/v2/users/me")).status_code == 200
        assert (await other.get("/v2/users/me")).status_code == 401
        assert (await other.post("/auth/login", json=SIGN_IN)).status_code == 401


async def test_gateways_know_sessions_until_they_end(api: Api) -> None:
    """At once, without waiting for events: the next request may be one for a model."""
    principals = api.services.routing.table.principals

    async def sign_in(client: httpx.AsyncClient) -> str:
        token = (await client.post("/auth/login", json=SIGN_IN)).cookies["gpustack_session"]
        return of_session(digest(token))

    async with httpx.AsyncClient(base_url=api.url) as other:
        first, second = await sign_in(other), await sign_in(api.anyone)
        assert principals[first].username == principals[second].username == "admin"
        assert principals[first].expires_at is not None
        change = {"current_password": PASSWORD, "new_password": "battery staple"}
        await api.anyone.post("/auth/update-password", json=change)
        assert first not in principals
        assert second in principals
        await api.anyone.post("/auth/logout")
        assert second not in principals


async def test_the_current_password_is_needed_to_change_it(api: Api) -> None:
    change = {"current_password": "wrong", "new_password": "battery staple"}

    answer = await api.admin.post("/auth/update-password", json=change)

    assert answer.status_code == 400
    assert answer.json()["message"] == "current_password: is wrong"


async def test_guessing_is_slowed_down_even_for_the_right_password(api: Api) -> None:
    wrong = {"username": "admin", "password": "guess"}
    answers = [(await api.anyone.post("/auth/login", json=wrong)).status_code for _ in range(6)]

    blocked = await api.anyone.post("/auth/login", json=SIGN_IN)

    assert answers == [401] * 6
    assert blocked.status_code == 429
    assert int(blocked.headers["retry-after"]) >= 1
    assert blocked.json()["reason"] == "TooManyRequests"


async def test_an_unknown_user_is_refused_in_the_same_words(api: Api) -> None:
    known = await api.anyone.post("/auth/login", json={"username": "admin", "password": "guess"})
    unknown = await api.anyone.post("/auth/login", json={"username": "nobody", "password": "guess"})

    assert known.status_code == unknown.status_code == 401
    assert known.json() == unknown.json()


@pytest.mark.parametrize(
    "headers", [{"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}]
)
async def test_a_page_of_another_site_cannot_use_the_session(api: Api, headers: dict[str, str]) -> None:
    await api.anyone.post("/auth/login", json=SIGN_IN)

    answer = await api.anyone.post("/v2/models", json={"name": "x", "local_path": "/x"}, headers=headers)

    assert answer.status_code == 403
    assert (await api.admin.get("/v2/models")).json()["pagination"]["total"] == 0


async def test_our_own_page_can(api: Api) -> None:
    await api.anyone.post("/auth/login", json=SIGN_IN)

    answer = await api.anyone.post(
        "/v2/models", json={"name": "x", "local_path": "/x"}, headers={"Origin": api.url}
    )

    assert answer.status_code == 201


PUBLIC = {"/healthz", "/readyz", "/version", "/docs", "/redoc", "/openapi.json"}


async def test_everything_but_probes_login_and_documents_needs_a_credential(api: Api) -> None:
    document = (await api.anyone.get("/openapi.json")).json()
    open_to_all = set()
    for path, item in document["paths"].items():
        for method in item:
            url = path.replace("{", "").replace("}", "").replace("_id", "")
            answer = await api.anyone.request(method, url.replace("/key", "/1").replace("/model/", "/1/"))
            if answer.status_code not in (401, 404):
                open_to_all.add(path)
    assert open_to_all <= PUBLIC | {"/auth/login", "/auth/logout"}


@pytest.mark.parametrize(
    ("who", "method", "path", "status"),
    [
        ("worker", "GET", "/v2/model-instances", 200),
        ("worker", "GET", "/v2/models", 403),
        ("worker", "GET", "/v2/workers", 403),
        ("worker", "POST", "/v2/models", 403),
        ("worker", "GET", "/v2/api-keys", 403),
        ("worker", "DELETE", "/v2/workers/1", 403),
        # Its own registration it may renew; that of others is in test_workers.
        ("worker", "POST", "/v2/workers", 400),
        ("worker", "GET", "/v1/models", 401),
        ("registration", "GET", "/v2/workers", 403),
        ("registration", "GET", "/v2/users/me", 403),
        ("registration", "GET", "/v1/models", 401),
        ("key", "GET", "/v2/workers", 200),
        ("key", "GET", "/v1/models", 200),
        ("limited key", "GET", "/v2/models", 403),
        ("limited key", "POST", "/v2/api-keys", 403),
        ("limited key", "GET", "/v1/models", 200),
        ("gpustack_worker_unknown", "GET", "/v2/models", 401),
        ("gpustack_0000000000000000_00000000000000000000000000000000", "GET", "/v2/models", 401),
        ("\u00e9", "GET", "/v2/models", 401),
    ],
)
async def test_who_may_do_what(api: Api, who: str, method: str, path: str, status: int) -> None:
    match who:
        case "worker":
            credential = (await api.worker())["token"]
        case "registration":
            credential = (api.data_dir / "token").read_text()
        case "key":
            credential = await api.key()
        case "limited key":
            credential = await api.key(allowed_model_names=["tiny"])
        case _:
            credential = who
    headers = {"Authorization": b"Bearer " + credential.encode("latin-1")}

    answer = await api.anyone.request(method, path, headers=headers)

    assert answer.status_code == status, answer.text


async def test_a_crowd_is_not_taken_for_guessing(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def crowded(_self: object, _stored: object, _password: object) -> bool:
        raise Throttled("too many sign-ins at once", retry_after=2)

    with monkeypatch.context() as patch:
        patch.setattr(Passwords, "verify", crowded)
        answers = [(await api.anyone.post("/auth/login", json=SIGN_IN)).status_code for _ in range(10)]

    assert answers == [429] * 10
    assert (await api.anyone.post("/auth/login", json=SIGN_IN)).status_code == 200


async def test_a_proxy_on_this_machine_is_not_blocked_for_what_one_user_does(api: Api) -> None:
    api.services.by_address._free = 0
    for number in range(3):
        wrong = {"username": f"u{number}", "password": "guess"}
        assert (await api.anyone.post("/auth/login", json=wrong)).status_code == 401

    assert (await api.anyone.post("/auth/login", json=SIGN_IN)).status_code == 200


async def test_a_session_while_the_database_is_away_is_asked_to_come_again(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(_digest: str) -> None:
        raise Unavailable("the database does not answer now", retry_after=1)

    await api.anyone.post("/auth/login", json=SIGN_IN)
    monkeypatch.setattr(api.services.store.sessions, "user_by_digest", away)

    for path in ("/v1/models", "/v2/users/me"):
        answer = await api.anyone.get(path)
        assert answer.status_code == 503
        assert "database does not answer" in answer.text
