"""A worker against a server that only remembers: real HTTP, real processes, no database."""

import asyncio
import contextlib
import json
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
import uvicorn

from gpustack.extensions import Catalogue, Registered
from gpustack.lifecycle.engine import EngineLimits
from gpustack.plugin import InferenceBackend, LaunchPlan, NoSettings, PipxPackage, ResourceClaim, Verdict
from gpustack.schemas import ModelForWorker, ModelInstancePublic
from gpustack.worker.agent import run_worker
from gpustack.worker.config import WorkerConfig
from gpustack.worker.runners.ending import end_recorded
from support.gguf_bytes import a_gguf
from support.running import free_ports

ENGINE = str(Path(__file__).parents[1] / "engine_process" / "fake_engine.py")
NOW = datetime(2026, 1, 1, tzinfo=UTC).isoformat()


class Quiet(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self):
        yield


class FakeServer:
    """Keeps what workers say, and tells them what is wanted."""

    def __init__(self) -> None:
        self.things: dict[str, dict[int, dict[str, Any]]] = {
            "model-instances": {},
            "model-files": {},
            "worker-engines": {},
        }
        #: What the worker said that it has, each time, and what models run from.
        self.inventories: list[list[dict[str, Any]]] = []
        self.wanted: list[dict[str, Any]] = []
        self.models: dict[int, dict[str, Any]] = {}
        self.reports: list[tuple[str, int, dict[str, Any]]] = []
        self.registrations: list[dict[str, Any]] = []
        self.beats: list[dict[str, Any]] = []
        self.challenges: list[str] = []
        self.knows_keys = True
        #: The session that each request said, registrations aside.
        self.sessions: list[str] = []
        self.tokens: dict[str, int] = {}
        self.down = False
        #: What shown credentials were, and answers to the next registrations in place of the usual one.
        self.shown: list[str] = []
        self.answers: list[tuple[int, Any]] = []
        self.beat_answer: tuple[int, Any] = (204, None)
        #: Called at the beginning of each request.
        self.on_request: Callable[[], None] = lambda: None
        #: Reports that are refused from now on, as by a server that is just changing the instance itself.
        self.refuse = 0
        self.number = 100
        self._watchers: dict[str, set[asyncio.Queue[bytes]]] = {
            "model-instances": set(),
            "model-files": set(),
            "worker-engines": set(),
        }

    async def start(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        config = uvicorn.Config(self, log_config=None, lifespan="off", timeout_graceful_shutdown=1, ws="none")
        self._server = Quiet(config)
        self._task = asyncio.create_task(self._server.serve(sockets=[self.socket]))

    async def stop(self) -> None:
        self._server.should_exit = True
        for queue in [each for watchers in self._watchers.values() for each in watchers]:
            queue.put_nowait(b"")
        await self._task
        self.socket.close()

    # What tests do --------------------------------------------------------------------------------------

    def want(self, number: int, model: dict[str, Any], **fields: Any) -> None:
        """Place an instance of ``model`` on worker 1."""
        self.models[number] = ModelForWorker.model_validate(
            {"id": number, "created_at": NOW, "updated_at": NOW, "cluster_id": 1, **model}
        ).model_dump(mode="json")
        row = {
            "id": number,
            "created_at": NOW,
            "updated_at": NOW,
            "state_since": NOW,
            "name": f"{model['name']}-{number}",
            "model_id": number,
            "model_name": model["name"],
            "cluster_id": 1,
            "worker_id": 1,
            "backend": "fake",
            "resolved_path": model["local_path"],
            "state": "scheduled",
            **fields,
        }
        self.put("model-instances", ModelInstancePublic.model_validate(row).model_dump(mode="json"))

    def put(self, kind: str, row: dict[str, Any]) -> None:
        new = row["id"] not in self.things[kind]
        self.things[kind][row["id"]] = row
        self._tell(kind, 1 if new else 2, row)

    def drop(self, kind: str, number: int) -> None:
        self._tell(kind, 3, self.things[kind].pop(number))

    def take_away(self, number: int, **fields: Any) -> None:
        """Place an instance elsewhere: it leaves what this worker watches, which is told as its end."""
        self._tell("model-instances", 3, self.things["model-instances"].pop(number) | fields)

    def forget_workers(self) -> None:
        self.tokens.clear()

    def states(self, number: int) -> list[str]:
        return [
            report["state"]
            for kind, which, report in self.reports
            if (kind, which) == ("model-instances", number)
        ]

    def last(self, number: int, kind: str = "model-instances") -> dict[str, Any]:
        found = [report for each, which, report in self.reports if (each, which) == (kind, number)]
        return found[-1] if found else {"state": ""}

    # HTTP -----------------------------------------------------------------------------------------------

    def _tell(self, kind: str, what: int, row: dict[str, Any]) -> None:
        self.number += 1
        line = self._line(what, row, self.number)
        for queue in self._watchers[kind]:
            queue.put_nowait(line)

    @staticmethod
    def _line(what: int, row: dict[str, Any], number: int) -> bytes:
        event = {"type": what, "id": row.get("id", 0), "data": row, "changed_fields": {}, "number": number}
        return json.dumps(event).encode() + b"\n\n"

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.on_request()
        headers = dict(scope["headers"])
        token = headers.get(b"authorization", b"").decode().removeprefix("Bearer ")
        parts = scope["path"].strip("/").split("/")
        query = parse_qs(scope["query_string"].decode())
        if self.down:
            await self._send(send, 503, {"code": 503, "message": "down"})
        elif scope["method"] == "POST" and parts == ["v2", "workers"]:
            await self._register(send, token, json.loads(body))
        elif parts == ["v2", "worker-challenges"] and not self.knows_keys:
            await self._send(send, 404, {"code": 404, "message": f"no {scope['path']}"})
        elif parts == ["v2", "worker-challenges"]:
            self.challenges.append(f"challenge-{len(self.challenges)}")
            await self._send(send, 201, {"challenge": self.challenges[-1], "expires_in": 9})
        elif token not in self.tokens:
            await self._send(send, 401, {"code": 401, "message": "who are you"})
        elif parts == ["v2", "worker-heartbeat"]:
            self.sessions.append(headers.get(b"x-gpustack-session", b"").decode())
            self.beats.append(json.loads(body))
            await self._send(send, *self.beat_answer)
        elif parts[:2] == ["v2", "models"]:
            model = self.models.get(int(parts[2]))
            gone = {"code": 404, "message": "it was deleted"}
            await self._send(send, 404 if model is None else 200, model or gone)
        elif parts[-1] == "inventory":
            self.inventories.append(json.loads(body)["engines"])
            await self._send(send, 204, None)
        elif parts[-1] == "wanted":
            await self._send(send, 200, {"items": self.wanted})
        elif parts[-1] == "report":
            await self._report(send, parts[1], int(parts[2]), json.loads(body))
        elif "watch" in query:
            await self._watch(send, parts[1], "since" in query)
        else:
            await self._send(send, 404, {"code": 404, "message": f"no {scope['path']}"})

    async def _register(self, send: Any, token: str, body: dict[str, Any]) -> None:
        self.shown.append(token)
        if self.answers:
            await self._send(send, *self.answers.pop(0))
            return
        if token != "join" and token not in self.tokens:
            await self._send(send, 401, {"code": 401, "message": "who are you"})
            return
        self.registrations.append(body)
        given = f"credential-number-{len(self.registrations)}" if token == "join" else token
        self.tokens = {given: 1}
        answer = {
            "id": 1,
            "name": body["name"],
            "token": given,
            "session": len(self.registrations),
            "newer": "than this worker",
        }
        await self._send(send, 201, answer)

    async def _report(self, send: Any, kind: str, number: int, body: dict[str, Any]) -> None:
        if number not in self.things[kind]:
            await self._send(send, 404, {"code": 404, "message": "it was deleted"})
            return
        if self.refuse:
            self.refuse -= 1
            await self._send(send, 409, {"code": 409, "message": "it is just being changed"})
            return
        self.reports.append((kind, number, body))
        if body.get("ended") or body.get("gone"):
            await self._send(send, 200, self.things[kind][number])
            self.drop(kind, number)
            return
        row = self.things[kind][number]
        row.update({name: value for name, value in body.items() if name in row and name != "request"})
        await self._send(send, 200, row)
        self._tell(kind, 2, row)

    async def _watch(self, send: Any, kind: str, resumed: bool) -> None:
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        head = {"type": "http.response.start", "status": 200, "headers": []}
        await send(head)
        if not resumed:
            for row in self.things[kind].values():
                await send(
                    {"type": "http.response.body", "body": self._line(1, row, self.number), "more_body": True}
                )
            beat = self._line(5, {}, self.number)
            await send({"type": "http.response.body", "body": beat, "more_body": True})
        self._watchers[kind].add(queue)
        try:
            while line := await queue.get():
                await send({"type": "http.response.body", "body": line, "more_body": True})
        finally:
            self._watchers[kind].discard(queue)

    async def _send(self, send: Any, status: int, document: Any) -> None:
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        if isinstance(document, bytes):
            body = document
        else:
            body = b"" if document is None else json.dumps(document).encode()
        await send({"type": "http.response.body", "body": body})


class FakeBackend(InferenceBackend[NoSettings]):
    """Runs the fake engine; the first parameter says how it behaves."""

    name = "fake"
    settings_type = NoSettings
    default_version = "1"

    def accepts(self, model, devices):
        return Verdict.yes()

    def estimate(self, request):
        return ResourceClaim(ram=1)

    def artifact(self, version, platform):
        return PipxPackage(package="fake", version=version, command="fake")

    def launch(self, request):
        return LaunchPlan(argv=(request.command, ENGINE, str(request.port), *request.parameters))


class FakeInstaller:
    #: Packages that the last engine was wanted with.
    extras: tuple[str, ...] = ()

    def __init__(self, **_: Any) -> None:
        pass

    def installed(self) -> dict[str, list[str]]:
        return {"fake": ["1"]}

    def environments(self) -> list[Any]:
        return []

    async def settle(self) -> list[str]:
        return []

    async def ensure(
        self, backend: str, artifact: Any, on_progress: Any, extras: tuple[str, ...] = ()
    ) -> Path:
        on_progress("installing")
        FakeInstaller.extras = extras
        return Path(sys.executable)


class Fleet:
    """Starts and ends workers of one data directory."""

    def __init__(self, root: Path, server: FakeServer) -> None:
        self.server = server
        self.root = root
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.model = str(a_gguf(root / "m.gguf"))
        for name in ("data", "bin", "log"):
            (root / name).mkdir()
        self.config = WorkerConfig(
            server_url=server.url,
            registration_token="join",
            name="w1",
            advertise_ip="127.0.0.1",
            data_dir=root / "data",
            bin_dir=root / "bin",
            log_dir=root / "log",
            service_ports=free_ports(4),
            heartbeat=0.2,
            grace=1.0,
            limits=EngineLimits(start=8, probe_running=0.1, missed_probes=3, backoff=0.3),
        )
        self.catalogue = Catalogue(
            backends={"fake": Registered(cls=FakeBackend, plugin="fake", distribution="fake", version="1")}
        )
        self.task: asyncio.Task[None] | None = None
        self.ready = asyncio.Event()

    async def start(self, **changes: Any) -> None:
        from dataclasses import replace

        self.ready = asyncio.Event()
        config = replace(self.config, **changes)
        self.task = asyncio.create_task(run_worker(config, self.catalogue, self.socket.dup(), self.ready.set))
        waiting = asyncio.create_task(self.ready.wait())
        await asyncio.wait([self.task, waiting], timeout=20, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if self.task.done():
            self.task.result()

    async def stop(self) -> float:
        """End the worker; return the seconds that took."""
        began = time.monotonic()
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
            self.task = None
        return time.monotonic() - began

    def a_model(self, behaviour: str = "fine", **fields: Any) -> dict[str, Any]:
        return {"name": "m", "local_path": self.model, "backend_parameters": [behaviour], **fields}


def work(given: dict[str, Any]) -> None:
    """Be a worker, in a process of its own, until killed."""
    import gpustack.worker.agent

    gpustack.worker.agent.ArtifactInstaller = FakeInstaller  # type: ignore[assignment,misc]
    root = Path(given["root"])
    config = WorkerConfig(
        server_url=given["url"],
        registration_token="join",
        name="w1",
        advertise_ip="127.0.0.1",
        data_dir=root / "data",
        bin_dir=root / "bin",
        log_dir=root / "log",
        service_ports=given["ports"],
        heartbeat=0.2,
        keep_engines=True,
        limits=EngineLimits(start=8, probe_running=0.1, missed_probes=3, backoff=0.3),
    )
    catalogue = Catalogue(
        backends={"fake": Registered(cls=FakeBackend, plugin="fake", distribution="fake", version="1")}
    )
    asyncio.run(run_worker(config, catalogue, socket.create_server(("127.0.0.1", 0)), lambda: None))


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    server = FakeServer()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def fleet(tmp_path: Path, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Fleet]:
    monkeypatch.setattr("gpustack.worker.agent.ArtifactInstaller", FakeInstaller)
    fleet = Fleet(tmp_path, server)
    yield fleet
    await fleet.stop()
    await asyncio.to_thread(end_recorded, fleet.config.run_dir, grace=0.0)
    fleet.socket.close()


@pytest.fixture
def until() -> Callable[..., Any]:
    async def wait(what: Callable[[], object], *, seconds: float = 15.0) -> None:
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline, "it did not happen"
            await asyncio.sleep(0.02)

    return wait
