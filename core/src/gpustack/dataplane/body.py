"""Request bodies: read with a limit, and looked into just far enough to know the model."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec

from gpustack.dataplane.asgi import Receive
from gpustack.dataplane.errors import ApiError
from gpustack.kit.text import human_bytes

#: Bodies above this are parsed in a thread: a megabyte takes a few milliseconds.
_OFF_LOOP = 1 << 20


class ClientGone(Exception):
    """The client closed the connection while its request was read."""


class _Head(msgspec.Struct):
    model: Any = None


class _Pairs(list[tuple[str, Any]]):
    """The members of one JSON object, repeated names included."""


async def read(receive: Receive, *, limit: int, announced: int | None) -> bytes:
    """Return the whole body.

    Raises ApiError 413 above ``limit`` bytes, before reading when ``announced`` (Content-Length) says so;
    ClientGone when the client leaves.
    """
    if announced is not None and announced > limit:
        raise _too_large(limit)
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise _too_large(limit)
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"the request body is larger than {human_bytes(limit)}", code="request_too_large")


async def model_of(body: bytes) -> str:
    """Return the model that ``body`` names. Raises ApiError 400 saying what is wrong and where."""
    if len(body) > _OFF_LOOP:
        return await asyncio.to_thread(_model_of, body)
    return _model_of(body)


def _model_of(body: bytes) -> str:
    if not body.strip():
        raise _bad('the request body is empty; send a JSON object with "model"')
    try:
        # The quick way holds when the key can be written in one way only and stands there once.
        if body.count(b'"model"') == 1 and b"\\u" not in body:
            model = msgspec.json.decode(body, type=_Head).model
        else:
            model = _model_among_pairs(body)
    except RecursionError:
        raise _bad("the JSON of the request body is nested too deeply") from None
    except msgspec.ValidationError:
        raise _bad("the request body must be a JSON object") from None
    except (msgspec.DecodeError, ValueError):
        raise _bad(_where(body)) from None
    if model is None:
        raise _bad('the request body lacks "model", the name of the model to ask', param="model")
    if not isinstance(model, str):
        raise _bad('"model" must be a string', param="model")
    return model


def _model_among_pairs(body: bytes) -> Any:
    document = json.loads(body, object_pairs_hook=_Pairs)
    if not isinstance(document, _Pairs):
        raise _bad("the request body must be a JSON object")
    models = [value for name, value in document if name == "model"]
    if len(models) > 1:
        # The engine might read another one than we do.
        raise _bad('the request body has the key "model" more than once', param="model")
    return models[0] if models else None


def _where(body: bytes) -> str:
    try:
        json.loads(body)
    except json.JSONDecodeError as error:
        return f"the request body is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}"
    except UnicodeDecodeError as error:
        return f"the request body is not valid UTF-8 at byte {error.start}"
    except (RecursionError, ValueError) as error:
        return f"the request body cannot be read: {error}"
    return "the request body is not valid JSON"


def _bad(message: str, *, param: str | None = None) -> ApiError:
    return ApiError(400, message, code="invalid_request", param=param)
