"""``/v2/models``: what is to be served."""

from __future__ import annotations

from typing import Annotated

from litestar import Response, delete, get, patch, post, put
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from pydantic import ValidationError

from gpustack.kit.errors import NotFound
from gpustack.schemas import (
    ModelCreate,
    ModelForWorker,
    ModelInstancePublic,
    ModelPatch,
    ModelPublic,
    ModelUpdate,
    Page,
)
from gpustack.schemas.explanations import ModelExplanation
from gpustack.server.api.listing import PageNumber, PerPage, Select, listed
from gpustack.server.auth.caller import Access, Req, Via
from gpustack.server.body import Body, one
from gpustack.server.body import page as page_answer
from gpustack.server.errors import invalid
from gpustack.server.known_backends import KnownBackends, for_worker
from gpustack.server.services import services

#: A change of these may make a model that its backend cannot run.
_OF_BACKEND = frozenset({"backend", "backend_version", "image_name", "run_command"})


@get("/models", tags=["Models"])
async def list_models(
    request: Req,
    selection: Select,
    cluster_id: FromQuery[int | None] = None,
) -> Response[Page[ModelPublic]]:
    """List models."""
    return await listed(
        request,
        services(request).store.models,
        selection,
        topic="models",
        filters={"cluster_id": cluster_id},
    )


@get("/models/{model_id:int}", opt={"access": Access.WORKER}, tags=["Models"])
async def get_model(
    request: Req,
    model_id: FromPath[int],
    instance_id: Annotated[
        int | None,
        QueryParameter(
            description="As this instance of it is to be run: joined with what its backend's row says."
        ),
    ] = None,
) -> Response[ModelPublic]:
    """Return one model; a worker sees those that it has an instance of."""
    store, caller = services(request).store, request.user
    if caller.via is Via.WORKER:
        # Environment variables of models hold secrets, which are no other worker's business.
        here = await store.instances.list(per_page=1, model_id=model_id, worker_id=caller.worker_id)
        if not here.items:
            raise NotFound(f"there is no model {model_id} with an instance on this worker")
    model = await store.models.get(model_id)
    return one(model) if instance_id is None else one(await _for_instance(request, model, instance_id))


@get("/models/{model_id:int}/instances", tags=["Models"])
async def list_instances_of_model(
    request: Req, model_id: FromPath[int], page: PageNumber = 1, per_page: PerPage = 100
) -> Response[Page[ModelInstancePublic]]:
    """List the instances of one model."""
    store = services(request).store
    await store.models.get(model_id)
    return page_answer(await store.instances.list(page=page or 1, per_page=per_page, model_id=model_id))


@get("/models/{model_id:int}/explain", tags=["Models"])
async def explain_model(request: Req, model_id: FromPath[int]) -> Response[ModelExplanation]:
    """Explain why the instances of a model are where they are, or nowhere.

    Of what waits: how many workers each filter left, what is missing on the nearest ones, and what would make it fit, each
    tried on the fleet of this moment. Of what runs: why it went there, from the record of the decision.
    """
    parts = services(request)
    return one(await parts.explainer.explain(await parts.store.models.get(model_id)))


@post("/models", dto=Body[ModelCreate], tags=["Models"])
async def create_model(request: Req, data: JSONBody[ModelCreate]) -> Response[ModelPublic]:
    """Serve a model from now on. The answer comes at once; its instances tell how far it is."""
    parts = services(request)
    await _check_backend(request, data)
    _check_bundled(request, data.bundled_name)
    cluster = data.cluster_id if data.cluster_id is not None else (await parts.default_cluster()).id
    return one(await parts.store.models.create(data, cluster), status=201)


@put("/models/{model_id:int}", dto=Body[ModelUpdate], tags=["Models"])
async def update_model(
    request: Req, model_id: FromPath[int], data: JSONBody[ModelUpdate]
) -> Response[ModelPublic]:
    """Replace a model's description. Instances whose engines have to start anew for it are replaced one by one."""
    await _check_backend(request, data)
    _check_bundled(request, data.bundled_name)
    return one(await services(request).store.models.update(model_id, data))


@patch("/models/{model_id:int}", dto=Body[ModelPatch], tags=["Models"])
async def patch_model(
    request: Req, model_id: FromPath[int], data: JSONBody[ModelPatch]
) -> Response[ModelPublic]:
    """Change the named fields of a model and nothing else, as a JSON merge patch.

    Null stands for the default; objects such as `env` are merged name by name, lists are replaced. Instances whose
    engines have to start anew for it are replaced one by one.
    """
    _check_bundled(request, data.bundled_name or "")
    try:
        if data.model_fields_set & _OF_BACKEND:
            wanted = data.applied_to(await services(request).store.models.get(model_id))
            await _check_backend(request, wanted)
            if data.backend is not None:
                data.backend = wanted.backend
        return one(await services(request).store.models.patch(model_id, data))
    except ValidationError as error:
        raise invalid(error) from None


@delete("/models/{model_id:int}", tags=["Models"])
async def delete_model(
    request: Req,
    model_id: FromPath[int],
    force: Annotated[bool, QueryParameter(description="Cut requests in flight off.")] = False,
) -> None:
    """Stop serving a model, and forget it. Its instances end once the requests in flight on them are answered."""
    await services(request).store.models.delete(model_id, force=force)


async def _check_backend(request: Req, wanted: ModelCreate | ModelUpdate) -> None:
    """Give the backend the name that it has here. Raises InvalidInput when the model cannot be run with it."""
    if wanted.backend:
        known = await known_backends(request)
        wanted.backend = known.named(wanted.backend)
        known.engine(wanted, wanted.backend)


async def known_backends(request: Req) -> KnownBackends:
    """Return the backends of plugins and rows as they are now."""
    parts = services(request)
    versions = {name: each.cls.default_version for name, each in parts.catalogue.backends.items()}
    return KnownBackends(versions, (await parts.store.inference_backends.list(page=-1)).items)


async def _for_instance(request: Req, model: ModelPublic, instance_id: int) -> ModelForWorker:
    instance = await services(request).store.instances.get(instance_id)
    if instance.model_id != model.id or not request.user.may_see_any(instance.worker_ids):
        raise NotFound(f"there is no instance {instance_id} of model {model.name} on this worker")
    known = await known_backends(request)
    return for_worker(model, known, backend=instance.backend, version=instance.backend_version)


def _check_bundled(request: Req, name: str) -> None:
    if name:
        services(request).bundled.refuse_unknown(name)


HANDLERS = [
    list_models,
    get_model,
    list_instances_of_model,
    explain_model,
    create_model,
    update_model,
    patch_model,
    delete_model,
]
