"""The server below a path of somebody else's program, whatever way that program mounts things."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from litestar import Litestar, asgi

from gpustack.embedding import EmbeddedServer
from gpustack.embedding.mounting import located
from gpustack.extensions import Catalogue, Registered
from gpustack.plugin import NoSettings, WebApp

Mounting = Callable[[Any], Any]


def by_root_path(app: Any) -> Any:
    """As ASGI has it, and Starlette does: the path stays whole."""

    async def dispatch(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "root_path": "/a/gpus"}, receive, send)

    return dispatch


def by_cutting(app: Any) -> Any:
    """The path is cut off, and nobody is told."""

    async def dispatch(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "path": scope["path"].removeprefix("/a/gpus") or "/"}, receive, send)

    return dispatch


def by_cutting_and_telling(app: Any) -> Any:
    """The path is cut off, and ``root_path`` tells; some have no ``raw_path``."""

    async def dispatch(scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"].removeprefix("/a/gpus") or "/"
        told = {**scope, "path": path, "root_path": "/a/gpus"}
        del told["raw_path"]
        await app(told, receive, send)

    return dispatch


def by_litestar(app: Any) -> Any:
    """The path is cut off, and a slash is added to its end."""

    @asgi("/a/gpus", is_mount=True, copy_scope=True)
    async def mounted(scope: Any, receive: Any, send: Any) -> None:
        await app(scope, receive, send)

    return Litestar([mounted], openapi_config=None, logging_config=None)


class Page(WebApp[NoSettings]):
    name = "page"
    settings_type = NoSettings
    path = "/ui"

    def files(self) -> Path:
        return self.host.data_dir / "page"


@pytest.fixture
async def server(database_url: str, tmp_path: Path, tools: Any) -> AsyncIterator[EmbeddedServer]:
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "index.html").write_text("page")
    catalogue = Catalogue(
        web_apps={"page": Registered(cls=Page, plugin="page", distribution="page", version="1")}
    )
    async with EmbeddedServer(
        data_dir=tmp_path, database_url=database_url, settings=tools.settings, catalogue=catalogue
    ) as running:
        yield running


@pytest.fixture(params=[by_root_path, by_cutting, by_cutting_and_telling, by_litestar])
async def http(request: pytest.FixtureRequest, server: EmbeddedServer) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(request.param(server.app))
    async with httpx.AsyncClient(transport=transport, base_url="http://host") as client:
        yield client


async def test_everything_is_below_the_path(
    http: httpx.AsyncClient, server: EmbeddedServer, tools: Any
) -> None:
    async with server.client() as client:
        key = {"Authorization": f"Bearer {client.credential}"}
    assert (await http.get("/a/gpus/readyz")).text == "ok"
    assert (await http.get("/a/gpus/v2/models", headers=key)).json()["items"] == []
    assert (await http.get("/a/gpus/v1/models", headers=key)).json() == {"object": "list", "data": []}
    unknown = await http.post("/a/gpus/v1/chat/completions", json={"model": "x"}, headers=key)
    assert unknown.json()["error"]["code"] == "model_not_found"
    assert (await http.get("/a/gpus/v2/a/gpus", headers=key)).status_code == 404
    assert "/v2/nothing" in (await http.get("/a/gpus/v2/nothing", headers=key)).json()["message"]


async def test_it_leads_to_places_below_the_path(http: httpx.AsyncClient) -> None:
    for path in ("/a/gpus", "/a/gpus/"):
        front = await http.get(path)
        assert front.headers["location"] == "/a/gpus/docs"
    page = await http.get("/a/gpus/ui")
    assert page.headers["location"] == "/a/gpus/ui/"
    assert (await http.get("/a/gpus/ui/")).text == "page"


@pytest.mark.parametrize("page", ["docs", "redoc"])
async def test_the_documents_load_what_is_below_the_path(http: httpx.AsyncClient, page: str) -> None:
    answer = await http.get(f"/a/gpus/{page}")

    loaded = set(re.findall(r'(?:src|href|spec-url)="([^"]+)"', answer.text)) - {"data:,"}
    assert len(loaded) >= 2
    for address in loaded:
        assert address.startswith("/a/gpus/")
        assert (await http.get(address)).status_code == 200
    script = (await http.get("/a/gpus/docs/assets/show-swagger.js")).text
    assert '"/a/gpus/openapi.json"' in script
    described = (await http.get("/a/gpus/openapi.json")).json()
    assert described["servers"] == [{"url": "/a/gpus"}]
    assert "/v2/models" in described["paths"]


async def test_a_session_stays_below_the_path(http: httpx.AsyncClient, tools: Any) -> None:
    form = {"username": "admin", "password": tools.password}
    answer = await http.post("/a/gpus/auth/login", data=form)

    assert "Path=/a/gpus;" in answer.headers["set-cookie"]
    assert (await http.get("/a/gpus/v2/users/me")).json()["username"] == "admin"
    again = await http.post("/a/gpus/auth/logout")
    assert "Path=/a/gpus;" in again.headers["set-cookie"]
    assert (await http.get("/a/gpus/v2/users/me")).status_code == 401


async def test_at_the_root_nothing_is_added(server: EmbeddedServer, tools: Any) -> None:
    transport = httpx.ASGITransport(server.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://host") as http:
        form = {"username": "admin", "password": tools.password}
        assert "Path=/;" in (await http.post("/auth/login", data=form)).headers["set-cookie"]
        assert (await http.get("/")).headers["location"] == "/docs"
        assert (await http.get("/openapi.json")).json()["servers"] == [{"url": "/"}]


async def test_what_the_program_around_it_put_into_the_scope_stays_there(server: EmbeddedServer) -> None:
    async def dispatch(scope: Any, receive: Any, send: Any) -> None:
        scope |= {"user": "somebody else", "state": {"theirs": True}, "path_params": {"x": 1}}
        before = dict(scope)
        await server.app(scope, receive, send)
        assert scope == before
        assert scope["state"] == {"theirs": True}

    transport = httpx.ASGITransport(dispatch)
    async with httpx.AsyncClient(transport=transport, base_url="http://host") as http:
        assert (await http.get("/v2/models")).status_code == 401


@pytest.mark.parametrize(
    ("path", "raw", "root", "expected"),
    [
        ("/v2/x", None, "", ("", "/v2/x")),
        ("/v2/x", b"/v2/x", "", ("", "/v2/x")),
        ("/v2/x", b"/v2/x?a=/b", "", ("", "/v2/x")),
        ("/m/v2/x", b"/m/v2/x", "/m", ("/m", "/v2/x")),
        ("/m", b"/m", "/m", ("/m", "/")),
        ("/m/", b"/m/", "/m", ("/m", "/")),
        ("/m/m/x", b"/m/m/x", "/m", ("/m", "/m/x")),
        ("/m/x", b"/m/m/x", "/m", ("/m", "/m/x")),
        ("/v2/x/", b"/m/v2/x", "", ("/m", "/v2/x")),
        ("/", b"/m", "", ("/m", "/")),
        ("/", b"/m/", "", ("/m", "/")),
        ("/", b"/", "", ("", "/")),
        ("/v2/x", b"/m/v2/x", "/m", ("/m", "/v2/x")),
        ("/v2/x", b"/m/v2/x", "/proxy", ("/proxy/m", "/v2/x")),
        ("/v2/x", b"/m/v2/x", "/proxy/m", ("/proxy/m", "/v2/x")),
        ("/proxy/v2/x", b"/v2/x", "/proxy", ("/proxy", "/v2/x")),
        ("/v2/x", b"/v2/x", "/proxy", ("/proxy", "/v2/x")),
        ("/v2/a b", b"/m%20n/v2/a%20b", "", ("/m n", "/v2/a b")),
        ("/x/y/", b"/m//x/y", "", ("/m", "//x/y")),
        ("/mx", b"/mx", "/m", ("/m", "/mx")),
    ],
)
def test_where_it_is(path: str, raw: bytes | None, root: str, expected: tuple[str, str]) -> None:
    scope = {"path": path, "root_path": root} | ({} if raw is None else {"raw_path": raw})

    assert located(scope) == expected


async def test_other_kinds_of_connections_have_an_answer(server: EmbeddedServer) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message["type"])

    asked = iter(["lifespan.startup", "lifespan.shutdown", "websocket.connect"])

    async def receive() -> Any:
        return {"type": next(asked)}

    await server.app({"type": "lifespan"}, receive, send)
    await server.app({"type": "websocket", "path": "/"}, receive, send)

    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete", "websocket.close"]
