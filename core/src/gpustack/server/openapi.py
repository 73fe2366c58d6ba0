"""The OpenAPI document: litestar's paths, pydantic's schemas, our errors and credentials, and the inference paths."""

from __future__ import annotations

from typing import Any, cast

from litestar import Litestar
from pydantic.json_schema import models_json_schema

from gpustack import schemas
from gpustack.dataplane.gateway.operations import OPERATIONS
from gpustack.schemas import workers
from gpustack.schemas.explanations import ModelExplanation
from gpustack.schemas.gateway import GatewayPublic
from gpustack.schemas.plugins import PluginsPublic
from gpustack.server.auth.authenticate import COOKIE
from gpustack.server.auth.caller import Access

_PAGED = (
    schemas.ApiKeyPublic,
    schemas.ModelPublic,
    schemas.ModelInstancePublic,
    schemas.ModelFilePublic,
    schemas.WorkerPublic,
    schemas.WorkerEnginePublic,
    schemas.GpuDevicePublic,
    schemas.InferenceBackendPublic,
    schemas.ClusterPublic,
    schemas.InstanceEventPublic,
    schemas.ModelSetPublic,
    schemas.ModelSpecPublic,
    schemas.ModelRoutePublic,
    schemas.ModelRouteTargetPublic,
)
_READ = (
    schemas.Login,
    schemas.PasswordChange,
    schemas.PasswordReset,
    schemas.ModelCreate,
    schemas.ModelUpdate,
    schemas.ModelPatch,
    schemas.InferenceBackendCreate,
    schemas.InferenceBackendUpdate,
    schemas.InferenceBackendYaml,
    schemas.ModelRouteCreate,
    schemas.ModelRouteUpdate,
    schemas.ModelRoutePatch,
    schemas.ModelRouteAddTargets,
    schemas.ModelRouteTargetUpdate,
    schemas.ApiKeyCreate,
    schemas.InstanceReport,
    schemas.ModelFileReport,
    schemas.ModelFileDownload,
    schemas.WorkerEngineCreate,
    schemas.WorkerEngineReport,
    schemas.WorkerEngineInventory,
    schemas.EngineHeld,
    schemas.WorkerRegistration,
    schemas.WorkerProof,
    schemas.Heartbeat,
    schemas.UserSelfUpdate,
    workers.WorkerUpdate,
)
_WRITTEN = (
    schemas.GroupOrders,
    *_PAGED,
    *(schemas.Page[each] for each in _PAGED),  # type: ignore[valid-type]  # built at run time
    schemas.InferenceBackendList,
    schemas.ModelForWorker,
    schemas.UserPublic,
    schemas.ApiKeyCreated,
    schemas.EngineName,
    schemas.EnginesWanted,
    schemas.WorkerRegistered,
    schemas.WorkerChallenge,
    schemas.FleetPublic,
    schemas.LoginReply,
    schemas.PasswordResetReply,
    schemas.VersionInfo,
    schemas.UpdatePublic,
    schemas.ConfigPublic,
    schemas.Defragmentation,
    schemas.ErrorBody,
    schemas.Event,
    PluginsPublic,
    GatewayPublic,
    ModelExplanation,
)
_OPENAI_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_SUMMARIES = {
    "/v1/chat/completions": "Answer a conversation",
    "/v1/completions": "Continue a text",
    "/v1/responses": "Answer a conversation, in the form of OpenAI's Responses API",
    "/v1/messages": "Answer a conversation, in the form of Anthropic's API",
    "/v1/messages/count_tokens": "Count the tokens of a conversation",
    "/v1/embeddings": "Turn texts into vectors",
    "/v1/rerank": "Rank documents by a question",
    "/v1/score": "Score pairs of texts",
    "/v1/moderations": "Classify texts",
    "/v1/audio/speech": "Read a text aloud",
    "/v1/audio/transcriptions": "Write down what is said",
    "/v1/audio/translations": "Write down in English what is said",
    "/v1/images/generations": "Draw an image",
    "/v1/images/edits": "Change an image",
    "/v1/images/variations": "Vary an image",
    "/tokenize": "Turn a text into tokens",
    "/detokenize": "Turn tokens into a text",
}
_ERRORS = {
    400: "Something in the request is wrong; the message names every problem",
    401: "No credential, or one that is wrong or over",
    403: "This caller may not do this",
    404: "There is no such thing",
    409: "The state of the thing forbids this",
    413: "The body is too large",
    429: "Too many attempts; Retry-After says how long to wait",
    503: "Cannot be answered now; Retry-After says how long to wait",
}
_PUBLIC_ERRORS = (400, 429)


def build(app: Litestar) -> dict[str, Any]:
    """Return the document of ``app``. Takes some tenths of a second."""
    made = app.openapi_schema.to_schema()
    access = _access_by_operation(app)
    for path, item in made["paths"].items():
        for method, operation in item.items():
            _complete(operation, access.get((path, method), Access.ADMIN))
    components = made.setdefault("components", {})
    components["schemas"] = {**_schemas(), "OpenAIError": _OPENAI_ERROR}
    components["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer", "description": "An API key: gpustack_…"},
        "keyHeader": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        "session": {"type": "apiKey", "in": "cookie", "name": COOKIE},
    }
    made["security"] = _anyone()
    made["paths"] |= _inference_paths()
    return made


def _anyone() -> list[dict[str, list[str]]]:
    return [{"key": []}, {"keyHeader": []}, {"session": []}]


def _access_by_operation(app: Litestar) -> dict[tuple[str, str], Access]:
    found = {}
    for route in app.routes:
        for handler in getattr(route, "route_handlers", ()):
            for method in getattr(handler, "http_methods", ()):
                found[route.path_format, str(method).lower()] = handler.opt.get("access", Access.ADMIN)
    return found


def _complete(operation: dict[str, Any], access: Access) -> None:
    responses = operation["responses"]
    responses.pop("400", None)
    takes_body = "requestBody" in operation
    for status, description in _ERRORS.items():
        if access is Access.PUBLIC and status not in _PUBLIC_ERRORS:
            continue
        if (status == 413 and not takes_body) or status == 429:
            continue
        responses[str(status)] = {
            "description": description,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}},
        }
    if access is Access.PUBLIC:
        operation["security"] = []


def _schemas() -> dict[str, Any]:
    pairs: list[Any] = [(each, "validation") for each in _READ]
    pairs += [(each, "serialization") for each in _WRITTEN]
    _, definitions = models_json_schema(pairs, ref_template="#/components/schemas/{model}")
    return cast("dict[str, Any]", definitions["$defs"])


def _inference_paths() -> dict[str, Any]:
    paths = {
        operation.name: {
            "post": {
                "tags": ["Inference"],
                "summary": _SUMMARIES[operation.name],
                "operationId": operation.name.strip("/").replace("/", "_"),
                "description": "Passed on to the engine as it is, as far as that knows it; `stream` streams.",
                "requestBody": {
                    "required": True,
                    "content": {
                        ("multipart/form-data" if operation.form else "application/json"): {
                            "schema": {
                                "type": "object",
                                "required": ["model"],
                                "properties": {"model": {"type": "string"}, "stream": {"type": "boolean"}},
                                "additionalProperties": True,
                            }
                        }
                    },
                },
                "responses": _inference_responses({"application/json": {}, "text/event-stream": {}}),
            }
        }
        for operation in sorted(set(OPERATIONS.values()), key=lambda each: each.name)
    }
    models: dict[str, Any] = {
        "get": {
            "tags": ["Inference"],
            "summary": "List the models that run and that the caller may ask",
            "operationId": "v1_models",
            "responses": _inference_responses({"application/json": {"schema": {"type": "object"}}}),
        }
    }
    return {**paths, "/v1/models": models}


def _inference_responses(content: dict[str, Any]) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/OpenAIError"}}}
    answers = {"200": {"description": "The engine's answer", "content": content}}
    for status in (400, 401, 404, 413, 502, 503):
        text = _ERRORS.get(status, "The engine ended before it answered")
        answers[str(status)] = {"description": text, "content": error}
    return answers
