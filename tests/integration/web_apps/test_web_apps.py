"""Web apps of plugins, shown by a running server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest

from gpustack.extensions import Catalogue, Registered
from gpustack.plugin import NoSettings, Refused, WebApp
from gpustack.server.app import started
from gpustack.server.config import ServerConfig
from gpustack.server.web import claimed

PAGE = "<!doctype html><title>app</title><script src=assets/app.js></script>"


class Shown(WebApp[NoSettings]):
    """A web app of the folder that a test makes."""

    name = "shown"
    settings_type = NoSettings
    path = "/ui"
    folder: ClassVar[Path]

    def files(self) -> Path:
        return self.folder


def an_app(folder: Path, **fields: Any) -> type[WebApp[Any]]:
    return type("AnApp", (Shown,), {"folder": folder, **fields})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "app"
    (made / "assets").mkdir(parents=True)
    (made / "help").mkdir()
    (made / "index.html").write_text(PAGE)
    (made / "help" / "index.html").write_text("help")
    (made / "assets" / "app.js").write_text("alert('ü')")
    (made / "assets" / "big.bin").write_bytes(bytes(range(256)) * 4096)
    (made / "assets" / "empty.css").write_text("")
    (made / "a b.txt").write_text("spaces")
    (tmp_path / "secret.txt").write_text("secret")
    (made / "out.txt").symlink_to(tmp_path / "secret.txt")
    (made / "up").symlink_to(tmp_path)
    (made / "in.js").symlink_to(made / "assets" / "app.js")
    (made / "circle.js").symlink_to(made / "circle.js")
    os.mkfifo(made / "pipe.js")
    return made


@contextlib.asynccontextmanager
async def showing(
    database_url: str, data_dir: Path, *apps: type[WebApp[Any]]
) -> AsyncIterator[httpx.AsyncClient]:
    """Run a server with these web apps, each of a plugin of its own."""
    catalogue = Catalogue()
    for number, cls in enumerate(apps):
        catalogue.web_apps[f"{cls.name}-{number}"] = Registered(
            cls=cls, plugin=f"plugin-{number}", distribution="test", version="1"
        )
    config = ServerConfig(
        data_dir=data_dir, bin_dir=data_dir, version="1", bootstrap_password="correct horse"
    )
    async with started(config, database_url, catalogue, reconcile=False) as (app, _):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://host") as client:
            yield client


async def raw(client: httpx.AsyncClient, path: str, method: str = "GET") -> httpx.Response:
    """Ask for a path as it is, decoded once, as a server does; httpx would tidy it up."""
    app = client._transport.app  # type: ignore[attr-defined]
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [],
        "scheme": "http",
        "client": ("127.0.0.1", 1),
    }
    await app(scope, receive, send)
    body = b"".join(each.get("body", b"") for each in sent)
    return httpx.Response(sent[0]["status"], headers=sent[0]["headers"], content=body)


@pytest.mark.parametrize(
    ("path", "kind", "content"),
    [
        ("/ui/", "text/html; charset=utf-8", PAGE),
        ("/ui/index.html", "text/html; charset=utf-8", PAGE),
        ("/ui/assets/app.js", "text/javascript; charset=utf-8", "alert('ü')"),
        ("/ui/assets/empty.css", "text/css; charset=utf-8", ""),
        ("/ui/in.js", "text/javascript; charset=utf-8", "alert('ü')"),
        ("/ui/a%20b.txt", "text/plain; charset=utf-8", "spaces"),
        ("/ui/help/", "text/html; charset=utf-8", "help"),
        ("/ui/models/3", "text/html; charset=utf-8", PAGE),
        ("/ui/models/a:b", "text/html; charset=utf-8", PAGE),
    ],
)
async def test_files_have_their_types(
    migrated_url: str, tmp_path: Path, folder: Path, path: str, kind: str, content: str
) -> None:
    async with showing(migrated_url, tmp_path, an_app(folder)) as client:
        answer = await client.get(path)
        head = await client.head(path)

    assert answer.status_code == 200
    assert answer.text == content
    assert answer.headers["content-type"] == kind
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"] == "frame-ancestors 'self'"
    assert head.content == b""
    assert head.headers == answer.headers


async def test_a_folder_without_its_slash_leads_to_it(
    migrated_url: str, tmp_path: Path, folder: Path
) -> None:
    async with showing(migrated_url, tmp_path, an_app(folder)) as client:
        answers = {path: await client.get(path) for path in ("/ui", "/ui/help", "/ui?to=1", "/ui/assets")}

    assert answers["/ui"].headers["location"] == "/ui/"
    assert answers["/ui/help"].headers["location"] == "/ui/help/"
    assert answers["/ui?to=1"].headers["location"] == "/ui/?to=1"
    assert answers["/ui/assets"].status_code == 200  # it has no page of its own, as browser routes have none
    assert answers["/ui/assets"].text == PAGE


@pytest.mark.parametrize(
    "path",
    [
        "/ui/../secret.txt",
        "/ui/assets/../../secret.txt",
        "/ui/..",
        "/ui/./index.html",
        "/ui/%2e%2e/secret.txt",
        "/ui/..\\secret.txt",
        "/ui//etc/passwd",
        "/ui//secret.txt",
        "/ui/out.txt",
        "/ui/up/secret.txt",
        "/ui/circle.js",
        "/ui/pipe.js",
        "/ui/index.html\0.js",
        "/ui/\0",
        "/ui/missing.js",
        "/ui/" + "x" * 5000 + ".js",
        "/ui/index.html/more.js",
        "/ui-other",
        "/uix/index.html",
    ],
    ids=ascii,
)
async def test_nothing_else_is_given(migrated_url: str, tmp_path: Path, folder: Path, path: str) -> None:
    async with showing(migrated_url, tmp_path, an_app(folder)) as client:
        answer = await raw(client, path)
        for plain in ("/.", "..", "\0", "\\"):
            path = path.replace(plain, "".join(f"%{ord(each):02x}" for each in plain))
        encoded = await client.get(path)

    assert answer.status_code == 404, answer.text
    assert answer.json()["reason"] == "NotFound"
    assert "secret" not in answer.text.replace("secret.txt", "")
    assert encoded.status_code == 404


async def test_what_a_client_has_is_not_sent_again(migrated_url: str, tmp_path: Path, folder: Path) -> None:
    async with showing(migrated_url, tmp_path, an_app(folder)) as client:
        whole = await client.get("/ui/assets/big.bin")
        tag, date = whole.headers["etag"], whole.headers["last-modified"]

        async def status(**headers: str) -> int:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            return (await client.get("/ui/assets/big.bin", headers=named)).status_code

        assert len(whole.content) == 1 << 20
        assert await status(if_none_match=tag) == 304
        assert await status(if_none_match=f'"other", W/{tag}') == 304
        assert await status(if_none_match="*") == 304
        assert await status(if_none_match='"other"', if_modified_since=date) == 200
        assert await status(if_modified_since=date) == 304
        assert await status(if_modified_since="Thu, 01 Jan 1970 00:00:00 GMT") == 200
        assert await status(if_modified_since="yesterday") == 200
        (folder / "assets" / "big.bin").write_bytes(b"small")
        changed = await client.get("/ui/assets/big.bin", headers={"if-none-match": tag})

    assert changed.status_code == 200
    assert changed.content == b"small"


async def test_only_reading_is_allowed(migrated_url: str, tmp_path: Path, folder: Path) -> None:
    async with showing(migrated_url, tmp_path, an_app(folder)) as client:
        answer = await client.post("/ui/index.html", content=b"x")

    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET, HEAD"
    assert answer.json()["message"] == "/ui/index.html takes GET only"


async def test_the_root_is_the_last_resort(migrated_url: str, tmp_path: Path, folder: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "index.html").write_text("other")
    apps = (an_app(folder, path="/"), an_app(other, path="/other/"))
    async with showing(migrated_url, tmp_path, *apps) as client:
        for path in ("/", "/models/3", "/uix", "/index.html"):
            assert (await client.get(path)).text == PAGE, path
        assert (await client.get("/other/")).text == "other"
        assert (await raw(client, "//evil.example")).status_code == 404
        assert (await client.get("/help")).headers["location"] == "/help/"
        assert (await client.get("/healthz")).text == "ok"
        assert (await client.get("/v2/nothing")).json()["reason"] == "NotFound"
        assert (await client.get("/v1/models")).status_code == 401
        assert (await client.get("/docs")).text.startswith("<!doctype html>\n<html")
        assert (await client.get("/metrics")).status_code == 401


async def test_without_web_apps_the_root_leads_to_the_documents(migrated_url: str, tmp_path: Path) -> None:
    async with showing(migrated_url, tmp_path) as client:
        assert (await client.get("/")).headers["location"] == "/docs"


@pytest.mark.parametrize(
    "path",
    [
        "/v1",
        "/v2/ui",
        "/auth",
        "/docs/",
        "/redoc",
        "/openapi.json",
        "/healthz",
        "/readyz",
        "/version",
        "/metrics",
    ],
)
async def test_the_apis_paths_cannot_be_taken(
    migrated_url: str, tmp_path: Path, folder: Path, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        async with showing(migrated_url, tmp_path, an_app(folder, path=path), an_app(folder)) as client:
            assert (await client.get("/ui/")).text == PAGE
            assert (await client.get(path)).text != PAGE

    [line] = [each.getMessage() for each in caplog.records if "web app" in each.getMessage()]
    assert line.startswith("web app shown-0 of plugin plugin-0 is left out: its path")
    assert "belongs to the API" in line


async def test_of_two_that_claim_one_path_the_first_is_shown(
    migrated_url: str, tmp_path: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "index.html").write_text("other")
    with caplog.at_level(logging.WARNING):
        async with showing(migrated_url, tmp_path, an_app(folder), an_app(other, path="/ui/")) as client:
            assert (await client.get("/ui/")).text == PAGE

    [line] = [each.getMessage() for each in caplog.records if "web app" in each.getMessage()]
    assert "plugin-1 is left out" in line
    assert "plugin-0" in line


@pytest.mark.parametrize("path", ["ui", "/u i", "/ui?x", "/ui/../x", "/ui//x", "/%75i", "/..", "//", "/."])
def test_a_path_that_is_none(path: str) -> None:
    if path == "//":
        assert claimed(path) == ""
        return
    with pytest.raises(Refused):
        claimed(path)


def raising(_: Any) -> Path:
    raise ZeroDivisionError


def hanging(_: Any) -> Path:
    time.sleep(60)
    return Path("/")


def refusing(_: Any) -> Path:
    raise Refused("build it first")


async def failing(_: Any) -> Any:
    raise ZeroDivisionError


async def waiting(_: Any) -> Any:
    await asyncio.sleep(60)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"files": raising}, "ZeroDivisionError"),
        ({"files": hanging}, "did not answer within 0.7 s"),
        ({"files": refusing}, "build it first"),
        ({"files": lambda _: Path("relative")}, "no absolute path"),
        ({"files": lambda _: "/text"}, "no absolute path"),
        ({"files": lambda _: None}, "no absolute path"),
        ({"files": lambda _: Path("/nowhere")}, "no index.html"),
        ({"__aenter__": failing}, "is left out"),
        ({"__aenter__": waiting}, "was not opened within 0.7 s"),
    ],
    ids=[
        "raises",
        "hangs",
        "refuses",
        "relative",
        "text",
        "none",
        "nowhere",
        "fails to open",
        "hangs at opening",
    ],
)
async def test_a_broken_one_leaves_the_others(
    migrated_url: str,
    tmp_path: Path,
    folder: Path,
    fields: dict[str, Any],
    said: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gpustack.server.web._OPENING", 0.7)
    apps = (an_app(folder, path="/broken", **fields), an_app(folder))
    began = time.monotonic()
    with caplog.at_level(logging.WARNING):
        async with showing(migrated_url, tmp_path, *apps) as client:
            assert time.monotonic() - began < 8
            assert (await client.get("/ui/")).text == PAGE
            assert (await client.get("/broken/")).status_code == 404

    [line] = [each.getMessage() for each in caplog.records if each.getMessage().startswith("web app shown-0")]
    assert "plugin-0" in line
    assert said in line
