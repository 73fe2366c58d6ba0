"""The server's API on a real socket and a real PostgreSQL, in this process and without reconciliation."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from gpustack.extensions import Catalogue, Registered
from gpustack.kit.net import listen
from gpustack.plugin import InferenceBackend, LaunchPlan, NoSettings, PipxPackage, ResourceClaim, Verdict
from gpustack.schemas import InstanceState
from gpustack.server.app import started
from gpustack.server.config import ServerConfig
from gpustack.server.listen import serve
from gpustack.server.services import Services

PASSWORD = "correct horse"
DOOR_TOKEN = "d" * 32


class AnyBackend(InferenceBackend[NoSettings]):
    """A backend that is only ever named."""

    name = "any"
    settings_type = NoSettings
    default_version = "1.0"

    def accepts(self, model: Any, devices: Any) -> Verdict:
        return Verdict.yes()

    def estimate(self, request: Any) -> ResourceClaim:
        return ResourceClaim(ram=1)

    def artifact(self, version: str, platform: Any) -> PipxPackage:
        return PipxPackage(package="any", version=version, command="any")

    def launch(self, request: Any) -> LaunchPlan:
        return LaunchPlan(argv=("any",))


def a_catalogue() -> Catalogue:
    found = Catalogue()
    found.backends["any"] = Registered(cls=AnyBackend, plugin="any", distribution="any-dist", version="0.1")
    return found


@dataclass
class Api:
    """A running server. ``admin`` speaks for the local command line; ``anyone`` sends no credential.

    ``uuid-of-worker-1`` is its built-in worker.
    """

    url: str
    services: Services
    admin: httpx.AsyncClient
    anyone: httpx.AsyncClient
    data_dir: Path
    serving: asyncio.Task[None]

    def client(self, credential: str) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, headers={"Authorization": f"Bearer {credential}"})

    async def key(self, **fields: Any) -> str:
        answer = await self.admin.post("/v2/api-keys", json={"name": "a key", **fields})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["value"])

    async def model(self, name: str = "tiny", **fields: Any) -> dict[str, Any]:
        answer = await self.admin.post("/v2/models", json={"name": name, "local_path": "/m.gguf", **fields})
        assert answer.status_code == 201, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def worker(self, uuid: str = "uuid-of-worker-1", **fields: Any) -> dict[str, Any]:
        token = (self.data_dir / "token").read_text()
        body = {
            "name": "w",
            "ip": "127.0.0.1",
            "door_token": DOOR_TOKEN,
            "worker_uuid": uuid,
            "version": "1",
            **fields,
        }
        answer = await self.anyone.post(
            "/v2/workers", json=body, headers={"Authorization": f"Bearer {token}"}
        )
        assert answer.status_code == 201, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def instance(
        self, model: dict[str, Any], worker_id: int | None, name: str = "tiny-1", **columns: Any
    ) -> int:
        """Put an instance in the database as reconciliation and a worker would."""
        store = self.services.store
        instance = await store.instances.create(await store.models.get(model["id"]), name)
        await store.instances.update(instance.id, worker_id=worker_id, **columns)
        return instance.id

    async def serving_model(self, *ports: int, name: str = "tiny") -> None:
        """Have a model answered at ``ports`` and wait until routing knows."""
        model = await self.model(name)
        worker = await self.worker()
        for number, port in enumerate(ports):
            await self.instance(
                model, worker["id"], name=f"{name}-{number}", state=InstanceState.RUNNING, port=port
            )
        await self.routed(name, len(ports))

    async def routed(self, name: str, targets: int) -> None:
        async with asyncio.timeout(5):
            while True:
                route = self.services.routing.table.routes.get(name)
                if route is not None and len(route.targets) == targets:
                    return
                await asyncio.sleep(0.005)


def as_worker(worker: dict[str, Any]) -> dict[str, str]:
    """Return the headers of a request of the worker's own."""
    return {"Authorization": f"Bearer {worker['token']}"}


@contextlib.asynccontextmanager
async def running_api(database_url: str, data_dir: Path, **settings: Any) -> AsyncIterator[Api]:
    config = ServerConfig(
        data_dir=data_dir,
        bin_dir=data_dir / "bin",
        version="0.0.test",
        **{"bootstrap_password": PASSWORD, "drain": 1.0, **settings},
    )
    (data_dir / "worker").mkdir(parents=True, exist_ok=True)
    (data_dir / "worker" / "worker_uuid").write_text("uuid-of-worker-1\n")
    listener = listen(0, host="127.0.0.1")
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(listener.close)
        app, services = await stack.enter_async_context(
            started(config, database_url, a_catalogue(), reconcile=False)
        )
        ready = asyncio.Event()
        serving = asyncio.create_task(
            serve(app, [listener], drain=config.drain, closing=services.closing, on_ready=ready.set)
        )
        async with asyncio.timeout(10):
            await ready.wait()
        token = (data_dir / "run" / "cli_token").read_text()
        admin = await stack.enter_async_context(
            httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {token}"})
        )
        anyone = await stack.enter_async_context(httpx.AsyncClient(base_url=url))
        try:
            yield Api(url, services, admin, anyone, data_dir, serving)
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
