"""Whose request it is: keys and sessions, which reach nobody else and stand in no log."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gpustack.plugin.routing import Principal, RoutingTable, digest, of_session
from support.gateway import (
    ASKED,
    CHAT,
    COOKIE,
    KEY,
    MARK,
    Running,
    a_gateway,
    a_recorder,
    a_request,
    a_route,
    a_target,
    fields_of,
    nobody,
    status_of,
)


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with a_gateway(tmp_path) as gateway:
        yield gateway


# Credentials ----------------------------------------------------------------------------------------------


async def test_no_log_and_no_journal_ever_holds_a_credential(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    log = tmp_path / "logs" / "access.log"
    secrets = [KEY, "sk-wrong-0815", "door-secret-4711", MARK.decode(), "session-0815"]
    async with a_recorder() as (port, _), a_recorder() as (server, _):
        async with a_gateway(tmp_path, access_log=log, server_at=(server, MARK)) as running:
            running.apply(
                a_route(a_target(1, port, credential="door-secret-4711")),
                a_route(a_target(2, await nobody(), credential="door-secret-4711"), name="gone"),
            )
            for key in (KEY, "sk-wrong-0815"):
                for header in (
                    f"Authorization: Bearer {key}",
                    f"X-Api-Key: {key}",
                    f"Authorization: Basic {key}",
                ):
                    for first in (
                        "POST /v1/chat/completions",
                        "POST /v1/nothing",
                        f"GET /v1/models?key={key}",
                        f"POST /model/proxy/tiny/x?api_key={key}",
                        "DELETE /v1/models",
                    ):
                        body = b"" if first.startswith("GET") else ASKED
                        await running.say(a_request(first, header, body=body, key=None))
                await running.say(a_request("POST /v1/chat/completions", body=b"{", key=key))
                await running.say(a_request(body=json.dumps({**CHAT, "model": "gone"}).encode(), key=key))
                await running.say(
                    b"POST /v1/x HTTP/1.1\r\nAuthorization: Bearer " + key.encode() + b"\x00\r\n\r\n"
                )
            await running.say(a_request("GET /v2/models", "Cookie: gpustack_session=session-0815", key=None))
            await running.at_rest()
        assert log.read_text().count("\n") > 10
    texts = {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    texts |= {
        f"{record.name} {record.levelname}": f"{record.getMessage()} {record.args} {record.exc_text}".encode()
        for record in caplog.records
    }
    for where, text in texts.items():
        assert not [secret for secret in secrets if secret.encode() in text], where


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ((f"Authorization: Bearer {KEY}", "X-API-Key: sk-wrong"), 200),
        (("X-API-Key: sk-wrong", f"Authorization: Bearer {KEY}"), 200),
        (("Authorization: Bearer sk-wrong", f"X-API-Key: {KEY}"), 401),
        ((f"X-API-Key: {KEY}", "Authorization: Bearer sk-wrong"), 401),
        (("Authorization: Basic abc", f"X-API-Key: {KEY}"), 200),
        ((f"X-API-Key: {KEY}",), 200),
        ((f"Authorization: bearer   {KEY} ",), 200),
        ((f"Authorization: Bearer {KEY}, Bearer {KEY}",), 401),
        ((f"Authorization: {KEY}",), 401),
        ((f"Proxy-Authorization: Bearer {KEY}",), 401),
        (("Authorization: Bearer sk-wrong", "Authorization: Bearer sk-wrong"), 400),
    ],
)
async def test_of_several_credentials_the_bearer_counts(
    running: Running, lines: tuple[str, ...], status: int
) -> None:
    running.apply(a_route())
    assert status_of(await running.say(a_request("GET /v1/models", *lines, key=None))) == status


@pytest.mark.parametrize(
    ("name", "turned"),
    [
        ("Authorization: Bearer ", False),
        ("Authorization: Bearer ", True),
        ("X-API-Key: ", False),
        ("X-API-Key: ", True),
    ],
)
async def test_two_credentials_of_one_kind_are_not_taken_for_either(
    running: Running, name: str, turned: bool
) -> None:
    """Whoever looks at the other one, a log or a proxy before us, sees somebody else."""
    running.apply(a_route())
    lines = [f"{name}{KEY}", f"{name}sk-other"]
    answer = await running.say(a_request("GET /v1/models", *(reversed(lines) if turned else lines), key=None))
    assert status_of(answer) in (400, 401)


async def test_no_credential_of_a_client_reaches_an_engine(running: Running) -> None:
    lines = (
        f"X-API-Key: {KEY}",
        f"Api-Key: {KEY}",
        f"Cookie: gpustack_session={KEY}; other=1",
        f"Proxy-Authorization: Bearer {KEY}",
        "Connection: keep-alive, x-secret",
        "X-Secret: one",
        "TE: trailers",
    )
    async with a_recorder() as (port, heads):
        running.apply(a_route(a_target(1, port), a_target(2, port, credential="door")))
        for first in (
            "POST /v1/chat/completions",
            "POST /model/proxy/tiny/x",
            "POST /model/proxy/tiny/v1/chat/completions",
        ):
            for _ in range(4):
                assert status_of(await running.say(a_request(first, *lines, body=ASKED))) == 200
    assert len(heads) == 12
    for head in heads:
        assert KEY.encode() not in head
        assert fields_of(head, "cookie") == fields_of(head, "x-secret") == fields_of(head, "te") == []
        assert fields_of(head, "authorization") in ([], [b"Bearer door"])


async def test_who_is_signed_in_goes_to_the_server_and_the_cookie_to_no_engine(tmp_path: Path) -> None:
    cookie = "Cookie: gpustack_session=abc"
    async with a_recorder() as (port, heads), a_recorder() as (server, asked):
        async with a_gateway(tmp_path, server_at=(server, MARK)) as running:
            running.apply(a_route(a_target(1, port)))
            assert (
                status_of(
                    await running.say(a_request("POST /v1/chat/completions", cookie, body=ASKED, key=None))
                )
                == 200
            )
            assert (len(asked), len(heads)) == (1, 0)
            assert fields_of(asked[0], "cookie") == [b"gpustack_session=abc"]
            assert (
                status_of(await running.say(a_request("POST /v1/chat/completions", cookie, body=ASKED)))
                == 200
            )
            assert (len(asked), len(heads)) == (1, 1)
            # A key that is wrong is not made right by a cookie.
            wrong = a_request("POST /v1/chat/completions", cookie, body=ASKED, key="sk-wrong")
            assert status_of(await running.say(wrong)) == 401
    assert fields_of(heads[0], "cookie") == []


async def test_a_session_in_the_table_needs_no_server_and_is_good_for_our_own_pages_only(
    tmp_path: Path,
) -> None:
    """A browser sends cookies along for pages of any site; whatever is not plain goes to the server, which refuses."""

    def asked_with(*lines: str, key: str | None = None) -> bytes:
        return a_request("POST /v1/chat/completions", *lines, body=ASKED, key=key)

    here, over = f"{COOKIE}=here", f"{COOKIE}=over"
    async with a_recorder() as (port, heads), a_recorder() as (server, passed_on):
        async with a_gateway(tmp_path, server_at=(server, MARK)) as running:
            running.apply(a_route(a_target(1, port)))
            people = {
                of_session(digest("here")): Principal(user_id=2, username="bob"),
                of_session(digest("over")): Principal(user_id=2, username="bob", expires_at=1.0),
            }
            running.gateway.apply(
                RoutingTable(version=2, routes=running.routes, principals=running.principals | people)
            )
            host = fields_of(asked_with(here), "host")[0].decode()
            for lines in (
                [f"Cookie: {here}"],
                [f"Cookie: theme=dark; {here}; other={here}"],
                [f"Cookie: {here}", f"Origin: http://{host}", "Sec-Fetch-Site: same-origin"],
            ):
                assert status_of(await running.say(asked_with(*lines))) == 200
            assert (len(heads), len(passed_on)) == (3, 0)
            record = (await running.records())[0]
            assert (record.user_id, record.key_id) == (2, None)
            for lines in (
                [f"Cookie: {over}"],
                [f"Cookie: {here}; {over}"],
                [f"Cookie: {here}", "Origin: https://elsewhere.example"],
                [f"Cookie: {here}", "Origin: null"],
                [f"Cookie: {here}", "Origin: http://[1"],
                [f"Cookie: {here}", "Sec-Fetch-Site: cross-site"],
            ):
                await running.say(asked_with(*lines))
            assert (len(heads), len(passed_on)) == (3, 6)
            # A session is no key, and a key no session.
            assert status_of(await running.say(asked_with(key="here"))) == 401
            await running.say(asked_with(f"Cookie: {COOKIE}={KEY}"))
            assert (len(heads), len(passed_on)) == (3, 7)
    assert all(fields_of(head, "cookie") == [] for head in heads)
