from __future__ import annotations

from typing import Any

import pytest

from gpustack.dataplane.asgi import Message, Receive, Scope, Send
from gpustack.dataplane.cors import CorsPolicy
from gpustack.server.cors import Cors

PAGE = "https://page.example"
Headers = list[tuple[bytes, bytes]]


def a_policy(**fields: Any) -> CorsPolicy:
    base: dict[str, Any] = {
        "allow_origins": (PAGE,),
        "allow_methods": ("GET", "POST"),
        "allow_headers": ("Authorization",),
    }
    return CorsPolicy(**{**base, **fields})


class AnApp:
    """Answers in three parts with :attr:`headers`, and keeps what it was asked."""

    def __init__(self, *headers: tuple[bytes, bytes]) -> None:
        self.headers = headers
        self.asked: list[Scope] = []

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        self.asked.append(scope)
        await send({"type": "http.response.start", "status": 401, "headers": self.headers})
        for number in (b"1", b"2", b"3"):
            await send({"type": "http.response.body", "body": number, "more_body": number != b"3"})


class Answer:
    def __init__(self, messages: list[Message]) -> None:
        self.messages = messages
        self.status = messages[0]["status"]
        self.body = b"".join(each["body"] for each in messages[1:]).decode()

    def __getitem__(self, name: str) -> str | None:
        """Return the header's value; there may be one only."""
        [*values] = [value for key, value in self.messages[0]["headers"] if key.lower() == name.encode()]
        assert len(values) <= 1
        return values[0].decode() if values else None

    @property
    def sharing(self) -> dict[str, str]:
        names = {key.decode() for key, _ in self.messages[0]["headers"]}
        return {name: self[name] or "" for name in names if name.startswith("access-control-")}


async def _never() -> Message:
    raise AssertionError("nobody should read the request")


async def ask(cors: Cors, method: str = "GET", **headers: str | None) -> Answer:
    """Ask as a page at PAGE does; ``_`` in names stands for ``-``, and None leaves a header out."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    given = {"origin": PAGE, **headers}
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in given.items() if value]
    await cors({"type": "http", "method": method, "path": "/v1/models", "headers": pairs}, _never, send)
    return Answer(sent)


async def preflight(
    policy: CorsPolicy, method: str = "POST", headers: str = "", origin: str = PAGE
) -> Answer:
    app = AnApp()
    answer = await ask(
        Cors(app, policy),
        "OPTIONS",
        origin=origin,
        access_control_request_method=method,
        access_control_request_headers=headers,
    )
    assert not app.asked
    return answer


async def test_a_preflight_is_answered_without_the_application() -> None:
    answer = await preflight(a_policy(), headers="authorization, content-type")

    assert (answer.status, answer.body) == (200, "")
    assert answer.sharing == {
        "access-control-allow-origin": PAGE,
        "access-control-allow-methods": "GET, POST",
        "access-control-allow-headers": "accept, accept-language, content-language, content-type, Authorization",
        "access-control-max-age": "600",
    }
    assert answer["vary"] == "Origin"


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"origin": "https://other.example"}, "origin"),
        ({"origin": "null"}, "origin"),
        ({"method": "DELETE"}, "method"),
        ({"method": "post"}, "method"),
        ({"headers": "authorization,x-mine"}, "headers"),
        ({"origin": "http://page.example", "method": "PUT", "headers": "x-a"}, "origin, method, headers"),
    ],
)
async def test_a_preflight_is_told_what_is_not_allowed(asked: dict[str, str], named: str) -> None:
    answer = await preflight(a_policy(), **asked)

    assert answer.status == 400
    assert answer.body == f"not allowed from another origin: {named}\n"
    assert not answer.sharing
    assert answer["vary"] == "Origin"


async def test_a_star_stands_for_all() -> None:
    policy = a_policy(allow_origins=("*",), allow_methods=("*",), allow_headers=("*",))

    answer = await preflight(policy, "PURGE", "x-a,  X-B ,", origin="http://anywhere:1")

    assert answer.status == 200
    assert answer.sharing == {
        "access-control-allow-origin": "*",
        "access-control-allow-methods": "PURGE",
        "access-control-allow-headers": "x-a, X-B",
        "access-control-max-age": "600",
    }
    assert answer["vary"] is None
    assert "access-control-allow-headers" not in (await preflight(policy)).sharing


@pytest.mark.parametrize(
    "headers", ["Accept", "accept-language", "content-language", "Content-Type", "", " , "]
)
async def test_what_any_page_may_send_is_always_allowed(headers: str) -> None:
    assert (await preflight(a_policy(allow_headers=()), headers=headers)).status == 200


@pytest.mark.parametrize(
    ("allowed", "origin", "is_allowed"),
    [
        ("https://Page.Example", PAGE, True),
        (PAGE, "HTTPS://PAGE.example", True),
        (PAGE, f"{PAGE}:8443", False),
        (PAGE, f"{PAGE}.evil.example", False),
        (PAGE, "http://page.example", False),
        ("null", "null", True),
    ],
)
async def test_which_origins_are_the_same(allowed: str, origin: str, is_allowed: bool) -> None:
    policy = a_policy(allow_origins=("https://other.example", allowed))

    answer = await ask(Cors(AnApp(), policy), origin=origin)

    assert answer["access-control-allow-origin"] == (origin if is_allowed else None)
    assert (await preflight(policy, origin=origin)).status == (200 if is_allowed else 400)


async def test_an_answer_may_be_read_by_a_page_that_is_allowed() -> None:
    app = AnApp((b"content-type", b"text/plain"))

    answer = await ask(Cors(app, a_policy()))

    assert (answer.status, answer.body, len(app.asked)) == (401, "123", 1)
    assert answer.sharing == {
        "access-control-allow-origin": PAGE,
        "access-control-expose-headers": "Retry-After, X-Request-Id",
    }
    assert (answer["vary"], answer["content-type"]) == ("Origin", "text/plain")


@pytest.mark.parametrize("origin", ["https://other.example", None])
async def test_others_are_answered_without_the_headers(origin: str | None) -> None:
    answer = await ask(Cors(AnApp(), a_policy()), origin=origin)

    assert (answer.status, answer.body) == (401, "123")
    assert not answer.sharing
    assert answer["vary"] == "Origin"


@pytest.mark.parametrize("origins", [(PAGE,), ("*",)])
async def test_credentials_are_for_an_origin_that_is_named(origins: tuple[str, ...]) -> None:
    policy = a_policy(allow_origins=origins, allow_credentials=True)

    for answer in (await ask(Cors(AnApp(), policy)), await preflight(policy)):
        assert answer["access-control-allow-origin"] == PAGE
        assert answer["access-control-allow-credentials"] == "true"
        assert answer["vary"] == "Origin"


async def test_for_all_origins_answers_are_the_same() -> None:
    cors = Cors(AnApp(), a_policy(allow_origins=("*",)))

    answer = await ask(cors)

    assert answer["access-control-allow-origin"] == "*"
    assert answer["vary"] is None
    assert not (await ask(cors, origin=None)).sharing


@pytest.mark.parametrize(
    ("own", "vary"),
    [
        ([b"Accept-Encoding"], "Accept-Encoding, Origin"),
        ([b"Accept", b"Cookie"], "Accept, Cookie, Origin"),
        ([b"accept, origin"], "accept, origin"),
        ([b"*"], "*"),
    ],
)
async def test_what_an_answer_varies_with_is_kept(own: list[bytes], vary: str) -> None:
    app = AnApp(*((b"Vary", each) for each in own))

    assert (await ask(Cors(app, a_policy())))["vary"] == vary


async def test_an_engine_does_not_open_what_the_policy_closes() -> None:
    app = AnApp((b"Access-Control-Allow-Origin", b"*"), (b"access-control-allow-credentials", b"true"))

    assert (await ask(Cors(app, a_policy())))["access-control-allow-origin"] == PAGE
    assert not (await ask(Cors(app, a_policy()), origin="https://other.example")).sharing


async def test_parts_of_an_answer_pass_as_they_come() -> None:
    answer = await ask(Cors(AnApp(), a_policy()))

    assert [each["body"] for each in answer.messages[1:]] == [b"1", b"2", b"3"]


@pytest.mark.parametrize("headers", [{}, {"origin": None, "access_control_request_method": "GET"}])
async def test_other_questions_for_options_are_the_applications(headers: dict[str, str | None]) -> None:
    app = AnApp()

    assert (await ask(Cors(app, a_policy()), "OPTIONS", **headers)).status == 401
    assert len(app.asked) == 1


async def test_the_policy_may_change_at_any_time() -> None:
    app = AnApp((b"access-control-allow-origin", b"as the engine has it"))
    cors = Cors(app, None)
    assert (await ask(cors)).sharing == {"access-control-allow-origin": "as the engine has it"}
    assert (await ask(cors, "OPTIONS", access_control_request_method="GET")).status == 401

    cors.policy = a_policy()
    assert (await ask(cors))["access-control-allow-origin"] == PAGE

    cors.policy = None
    assert len((await ask(cors)).sharing) == 1


async def test_what_is_not_http_passes() -> None:
    seen: list[Any] = []

    async def app(*given: Any) -> None:
        seen.extend(given)

    given: list[Any] = [{"type": "lifespan"}, object(), object()]
    await Cors(app, a_policy())(*given)

    assert all(one is other for one, other in zip(seen, given, strict=True))
