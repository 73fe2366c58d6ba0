"""An embedded server and its worker start, serve, and end without a trace."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from gpustack.embedding import EmbeddedServer, EmbeddedWorker
from gpustack.extensions import Catalogue
from gpustack.kit.errors import Conflict, GPUStackError, SettingsError, Unauthenticated
from gpustack.schemas import ModelCreate
from gpustack.server.config import ServerConfig
from support.gguf_bytes import a_gguf

Leaving = Callable[[Callable[[], Any]], None]


async def serve_a_model(server: EmbeddedServer, model: Path, tools: Any) -> list[str]:
    """Deploy a model, ask it, delete it, and return what was heard of it meanwhile."""
    heard: list[str] = []
    async with EmbeddedWorker(server) as worker, server.client() as client, server.events() as events:
        await worker.ready()
        await client.models.create(ModelCreate(name="tiny", local_path=str(model), backend="answering"))
        async with asyncio.timeout(30):
            async for event in events:
                heard.append(f"{event.kind} {event.change}")
                if event.kind == "instance" and event.thing.state == "running":
                    break
        transport = httpx.ASGITransport(server.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://host") as http:
            body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
            key = {"Authorization": f"Bearer {client.credential}"}

            async def answers() -> bool:
                answer = await http.post("/v1/chat/completions", json=body, headers=key)
                return "hello from the engine" in answer.text

            await tools.until(answers)
        await client.models.delete((await client.models.by_name("tiny")).id)
        async with asyncio.timeout(30):
            async for event in events:
                heard.append(f"{event.kind} {event.change}")
                if heard[-1] == "instance deleted":
                    break
    return heard


def test_it_serves_a_model_twice_in_one_process_and_leaves_nothing(
    new_database: Callable[[], str],
    tmp_path: Path,
    answering: Catalogue,
    leaving_nothing: Leaving,
    tools: Any,
) -> None:
    model = a_gguf(tmp_path / "m.gguf")
    server = EmbeddedServer(
        data_dir=tmp_path / "data",
        database_url=new_database(),
        settings=tools.settings,
        catalogue=answering,
    )

    async def once() -> None:
        async with server:
            heard = await serve_a_model(server, model, tools)
            assert {"model created", "instance created", "instance updated"} <= set(heard)
        assert tools.others() == set()

    for _ in range(2):
        leaving_nothing(lambda: asyncio.run(once()))


def test_two_at_once_share_nothing(
    new_database: Callable[[], str],
    tmp_path: Path,
    answering: Catalogue,
    leaving_nothing: Leaving,
    tools: Any,
) -> None:
    model = a_gguf(tmp_path / "m.gguf")

    def a_server(name: str) -> EmbeddedServer:
        return EmbeddedServer(
            data_dir=tmp_path / name, database_url=urls[name], settings=tools.settings, catalogue=answering
        )

    urls = {name: new_database() for name in ("a", "b")}

    async def both() -> None:
        async with a_server("a") as a, a_server("b") as b, b.events() as of_b:
            heard = await serve_a_model(a, model, tools)
            assert "instance updated" in heard
            async with a.client() as client, b.client() as other:
                assert [each.name for each in await client.workers.list_all()] != []
                assert await other.workers.list_all() == []
                other.credential = client.credential
                with pytest.raises(Unauthenticated):
                    await other.models.list_all()
            await of_b.aclose()
            assert [each async for each in of_b] == []
            # And both at the same time.
            await asyncio.gather(*(serve_a_model(each, model, tools) for each in (a, b)))
        assert tools.others() == set()

    leaving_nothing(lambda: asyncio.run(both()))


def test_the_embedded_postgresql_runs_and_ends_with_it(
    open_place: Path, leaving_nothing: Leaving, tools: Any
) -> None:
    server = EmbeddedServer(data_dir=open_place / "data", settings=tools.settings)

    async def once() -> None:
        async with server, server.client() as client:
            assert (await client.me()).username == "admin"
        assert tools.others() == set()

    leaving_nothing(lambda: asyncio.run(once()))
    leaving_nothing(lambda: asyncio.run(once()))


async def test_a_start_that_fails_leaves_nothing_behind(
    tmp_path: Path, tools: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "gpustack.embedding.server.ServerConfig", functools.partial(ServerConfig, database_wait=0.2)
    )
    url = "postgresql://user:sesame@127.0.0.1:1/x"
    server = EmbeddedServer(data_dir=tmp_path, database_url=url, settings=tools.settings)
    before = tools.others()

    for _ in range(2):
        with pytest.raises(GPUStackError) as caught:
            await server.__aenter__()
        assert "sesame" not in str(caught.value)
        assert tools.others() == before
        assert not (tmp_path / "run" / "cli_token").exists()


async def test_a_data_directory_is_for_one(database_url: str, tmp_path: Path, tools: Any) -> None:
    def a_server() -> EmbeddedServer:
        return EmbeddedServer(data_dir=tmp_path, database_url=database_url, settings=tools.settings)

    async with a_server() as server:
        with pytest.raises(RuntimeError):
            await server.__aenter__()
        with pytest.raises(Conflict, match="in use"):
            await a_server().__aenter__()


async def test_before_and_after_its_life_it_says_so(database_url: str, tmp_path: Path, tools: Any) -> None:
    server = EmbeddedServer(data_dir=tmp_path, database_url=database_url, settings=tools.settings)
    transport = httpx.ASGITransport(server.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://host") as http:
        before = await http.get("/readyz")
        async with server:
            assert (await http.get("/readyz")).text == "ok"
        after = await http.get("/readyz")

    assert before.status_code == after.status_code == 503
    assert before.headers["retry-after"] == "1"
    with pytest.raises(RuntimeError, match="async with"):
        server.client()


async def test_watches_end_with_it_and_requests_in_flight_are_answered(
    database_url: str, tmp_path: Path, tools: Any
) -> None:
    server = EmbeddedServer(data_dir=tmp_path, database_url=database_url, settings=tools.settings)
    async with server:
        begun, messages = asyncio.Event(), []
        headers = [(b"authorization", f"Bearer {server.client().credential}".encode())]

        async def receive() -> dict[str, Any]:
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: dict[str, Any]) -> None:
            messages.append(message)
            begun.set()

        scope = {
            "type": "http",
            "method": "GET",
            "path": "/v2/models",
            "query_string": b"watch=true",
            "headers": headers,
            "client": ("127.0.0.1", 1),
            "scheme": "http",
        }
        watch = asyncio.create_task(server.app(scope, receive, send))
        await begun.wait()

    await asyncio.wait_for(watch, 3)
    assert messages[0]["status"] == 200
    assert messages[-1].get("more_body", False) is False


async def test_a_request_that_its_host_cancels_is_cancelled(
    database_url: str, tmp_path: Path, tools: Any
) -> None:
    server = EmbeddedServer(data_dir=tmp_path, database_url=database_url, settings=tools.settings)

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/auth/login", "query_string": b"", "scheme": "http"}
    async with server:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await server.app({**scope, "headers": [(b"content-length", b"9")]}, receive, send)
        assert sent == []


async def test_what_must_not_end_and_does_is_told(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tools: Any
) -> None:
    from gpustack.db import Feed

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    async with EmbeddedServer(
        data_dir=tmp_path, database_url=database_url, settings=tools.settings
    ) as server:
        monkeypatch.setattr(Feed, "_hand_out", broken)
        async with server.client() as client:
            await client.models.create(
                ModelCreate(name="m", local_path="/m", backend="llama-cpp", replicas=0)
            )
        async with asyncio.timeout(10):
            assert "feed" in await server.broken()


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            {"bootstrap_pasword": "x"},
            "'bootstrap_pasword' is not an option; did you mean 'bootstrap_password'?",
        ),
        # What is near is not the program's to give.
        ({"prot": 1}, "'prot' is not an option"),
        ({5: 1}, "5 is not an option: an option is named by a text, such as 'worker_name'"),
        ({"port": 80}, "port: the program that mounts the server listens"),
        ({"bootstrap_password": "short"}, "bootstrap_password: give a password of at least 8 characters"),
        ({"data_dir": "/x"}, "data_dir: give it as the argument data_dir"),
    ],
)
async def test_settings_are_checked(tmp_path: Path, settings: dict[str, Any], line: str) -> None:
    with pytest.raises(SettingsError) as caught:
        await EmbeddedServer(data_dir=tmp_path / "new", settings=settings).__aenter__()

    assert str(caught.value) == line
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("data_dir", ["", " ", "a\0b", 5, None])
def test_a_data_directory_that_is_no_path_is_told_at_once(data_dir: Any) -> None:
    with pytest.raises(SettingsError, match=r"^data_dir: give a path$"):
        EmbeddedServer(data_dir=data_dir)


def test_the_data_directory_stays_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert EmbeddedServer(data_dir=Path("data")).data_dir == tmp_path / "data"


async def test_the_environment_is_not_read(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tools: Any
) -> None:
    monkeypatch.setenv("GPUSTACK_TOKEN", "from-the-environment")
    monkeypatch.setenv("GPUSTACK_DISABLE_OPENAPI_DOCS", "true")
    monkeypatch.setenv("GPUSTACK_PLUGINS_BLOCK", "backends")
    monkeypatch.setenv("GPUSTACK_PORT", "not a port")
    settings = {**tools.settings, "token": "given"}
    server = EmbeddedServer(data_dir=tmp_path, database_url=database_url, settings=settings)
    transport = httpx.ASGITransport(server.app)

    async with server, httpx.AsyncClient(transport=transport, base_url="http://host") as http:
        assert (await http.get("/docs")).status_code == 200
        async with server.client() as client:
            assert "llama-cpp" in {each.backend_name for each in await client.backends.list_all()}

    assert (tmp_path / "token").read_text() == "given"


async def test_a_worker_is_not_there_twice(database_url: str, tmp_path: Path, tools: Any) -> None:
    server = EmbeddedServer(data_dir=tmp_path, database_url=database_url, settings=tools.settings)
    async with server, EmbeddedWorker(server) as worker:
        await worker.ready()
        with pytest.raises(RuntimeError):
            await worker.__aenter__()
        async with EmbeddedWorker(server) as second:
            with pytest.raises(GPUStackError, match="is held by another program"):
                await second.ready()
