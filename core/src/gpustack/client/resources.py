"""The lists of the API: each can be listed, read, and where it makes sense created and deleted."""

from __future__ import annotations

import builtins
from typing import Any, Generic, TypeVar
from urllib.parse import quote

from pydantic import ValidationError

from gpustack.client.transport import Transport
from gpustack.kit.errors import GPUStackError, NotFound
from gpustack.schemas import (
    ApiKeyCreate,
    ApiKeyCreated,
    ApiKeyPublic,
    EngineName,
    EnginesWanted,
    InferenceBackendCreate,
    InferenceBackendPublic,
    InferenceBackendUpdate,
    InferenceBackendYaml,
    ModelCreate,
    ModelForWorker,
    ModelPatch,
    ModelPublic,
    ModelRouteAddTargets,
    ModelRouteCreate,
    ModelRoutePatch,
    ModelRoutePublic,
    ModelUpdate,
    WorkerEngineCreate,
    WorkerEngineInventory,
    WorkerEnginePublic,
    WorkerEngineReport,
)
from gpustack.schemas.common import Input, Output, Page

Item = TypeVar("Item", bound=Output)
Document = TypeVar("Document", bound=Output)


def read_as(kind: type[Document], document: Any) -> Document:
    """Return an answer of the server as ``kind``; GPUStackError when it is something else."""
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise GPUStackError(
            f"the server's answer is not a {kind.__name__} ({where or 'the whole'}); do the versions match?"
        ) from error


def as_sent(document: Input) -> Any:
    """Return ``document`` as JSON values, without the fields that nobody set.

    Absent fields keep what they were in reports, and a field that is newer than the server is not forced on it.
    """
    return document.model_dump(mode="json", exclude_unset=True)


class Resource(Generic[Item]):
    """One list of the API."""

    def __init__(self, transport: Transport, path: str, kind: type[Item]) -> None:
        self._transport = transport
        self._kind = kind
        self._page: type[Page[Item]] = Page[kind]  # type: ignore[valid-type]  # pydantic makes it at run time
        self.path = path

    async def list(self, *, page: int = 1, per_page: int = 100, **filters: Any) -> Page[Item]:
        """Return one page; ``filters`` are the list's query parameters, None leaves one out."""
        params = {"page": page, "perPage": per_page, **filters}
        return read_as(self._page, await self._transport.send("GET", self.path, params=params))

    async def list_all(self, **filters: Any) -> builtins.list[Item]:
        """Return every item of the list in one answer."""
        return (await self.list(page=-1, **filters)).items

    async def get(self, number: int) -> Item:
        """Return the item with that id; NotFound when there is none."""
        return read_as(self._kind, await self._transport.send("GET", f"{self.path}/{number}"))

    async def delete(self, number: int, *, force: bool = False) -> None:
        """Delete the item with that id; NotFound when there is none.

        Models and instances finish the requests in flight first, unless ``force`` cuts them off.
        """
        params = {"force": True} if force else None
        await self._transport.send("DELETE", f"{self.path}/{number}", params=params)


class Models(Resource[ModelPublic]):
    """Models."""

    async def by_name(self, name: str) -> ModelPublic:
        """Return the model called ``name``; NotFound when there is none."""
        # The search finds parts of names too, and the server may take it in any case.
        for model in await self.list_all(search=name):
            if model.name == name:
                return model
        raise NotFound(f"there is no model {name!r}; see `gpustack ls`")

    async def for_instance(self, number: int, instance: int) -> ModelForWorker:
        """Return a model as one of its instances is to be run; an older server leaves everything to the plugin."""
        params = {"instance_id": instance}
        answer = await self._transport.send("GET", f"{self.path}/{number}", params=params)
        return read_as(ModelForWorker, answer)

    async def create(self, model: ModelCreate) -> ModelPublic:
        """Deploy a model; Conflict when the name is taken."""
        return read_as(ModelPublic, await self._transport.send("POST", self.path, body=as_sent(model)))

    async def update(self, number: int, model: ModelUpdate) -> ModelPublic:
        """Replace a model's description."""
        return read_as(
            ModelPublic, await self._transport.send("PUT", f"{self.path}/{number}", body=as_sent(model))
        )

    async def patch(self, number: int, changes: ModelPatch) -> ModelPublic:
        """Change what is named of a model's description, and nothing else."""
        return read_as(
            ModelPublic, await self._transport.send("PATCH", f"{self.path}/{number}", body=as_sent(changes))
        )


class Routes(Resource[ModelRoutePublic]):
    """Model routes."""

    async def names(self) -> set[str]:
        """Return every name that requests may ask for, aliases included; none of a server older than routes."""
        try:
            routes = await self.list_all()
        except NotFound:
            return set()
        return {name for route in routes for name in (route.name, *route.aliases)}

    async def create(self, route: ModelRouteCreate) -> ModelRoutePublic:
        """Make a route; Conflict when a name is taken, NotFound for a target that is no model."""
        return read_as(ModelRoutePublic, await self._transport.send("POST", self.path, body=as_sent(route)))

    async def patch(self, number: int, changes: ModelRoutePatch) -> ModelRoutePublic:
        """Change what is named of a route, and nothing else."""
        return read_as(
            ModelRoutePublic,
            await self._transport.send("PATCH", f"{self.path}/{number}", body=as_sent(changes)),
        )

    async def add_targets(self, number: int, more: ModelRouteAddTargets) -> ModelRoutePublic:
        """Have more models answer for a route."""
        path = f"{self.path}/{number}/add-targets"
        return read_as(ModelRoutePublic, await self._transport.send("POST", path, body=as_sent(more)))


class Backends(Resource[InferenceBackendPublic]):
    """Inference backends, of plugins and of rows."""

    async def by_name(self, name: str) -> InferenceBackendPublic:
        """Return the backend called ``name``; NotFound when there is none."""
        path = f"{self.path}/backend_name/{quote(name, safe='')}"
        return read_as(InferenceBackendPublic, await self._transport.send("GET", path))

    async def create(self, backend: InferenceBackendCreate) -> InferenceBackendPublic:
        """Describe a backend; Conflict when it was described before."""
        answer = await self._transport.send("POST", self.path, body=as_sent(backend))
        return read_as(InferenceBackendPublic, answer)

    async def create_from_yaml(self, text: str) -> InferenceBackendPublic:
        """Describe a backend by the text of a YAML file."""
        body = as_sent(InferenceBackendYaml(content=text))
        return read_as(
            InferenceBackendPublic, await self._transport.send("POST", f"{self.path}/from-yaml", body=body)
        )

    async def update(self, number: int, backend: InferenceBackendUpdate) -> InferenceBackendPublic:
        """Replace the description of a backend; Conflict when models need what it takes away."""
        answer = await self._transport.send("PUT", f"{self.path}/{number}", body=as_sent(backend))
        return read_as(InferenceBackendPublic, answer)


class Engines(Resource[WorkerEnginePublic]):
    """Environments of engines on workers."""

    async def install(self, engine: WorkerEngineCreate) -> builtins.list[WorkerEnginePublic]:
        """Have a worker install an engine, or all; InvalidInput where the backend is not."""
        answer = await self._transport.send("POST", self.path, body=as_sent(engine))
        return read_as(self._page, answer).items

    async def remove(self, number: int) -> WorkerEnginePublic:
        """Have its worker take an environment away; NotFound when there is none."""
        return read_as(self._kind, await self._transport.send("DELETE", f"{self.path}/{number}"))

    async def wanted(self) -> builtins.list[EngineName]:
        """Return what models run from, or would."""
        return read_as(EnginesWanted, await self._transport.send("GET", f"{self.path}/wanted")).items

    async def report(self, number: int, report: WorkerEngineReport) -> WorkerEnginePublic:
        """Report on a request; NotFound when it is gone, Conflict when another was made."""
        path = f"{self.path}/{number}/report"
        return read_as(self._kind, await self._transport.send("POST", path, body=as_sent(report)))

    async def inventory(self, held: WorkerEngineInventory) -> None:
        """Tell all environments that this worker has; NotFound from a server older than that."""
        await self._transport.send("POST", f"{self.path}/inventory", body=as_sent(held))


class Keys(Resource[ApiKeyPublic]):
    """API keys of whoever asks."""

    async def revoke(self, number: int, *, close_streams: bool = False) -> None:
        """Revoke the key with that id; ``close_streams`` also ends the answers that it is getting just now."""
        params = {"close_streams": True} if close_streams else None
        await self._transport.send("DELETE", f"{self.path}/{number}", params=params)

    async def create(self, key: ApiKeyCreate) -> ApiKeyCreated:
        """Make a key; its text is in the answer and nowhere else."""
        return read_as(ApiKeyCreated, await self._transport.send("POST", self.path, body=as_sent(key)))
