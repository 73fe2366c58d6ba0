"""The API's description, and pages that show it. All they load lies on this machine."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from litestar import Litestar, Request, Response, get
from litestar.exceptions import NotFoundException
from litestar.params import FromPath
from litestar.response import Redirect

from gpustack.server.auth.caller import Access
from gpustack.server.web import mount_of

_PUBLIC = {"access": Access.PUBLIC}
#: Our name of each file -> its name in the ``offapi`` distribution, and its type.
_ASSETS = {
    "swagger-ui.css": ("swagger_style.css", "text/css"),
    "swagger-ui.js": ("swagger_bundle.js", "text/javascript"),
    "swagger-preset.js": ("swagger_preset.js", "text/javascript"),
    "redoc.js": ("redoc.js", "text/javascript"),
    "show-swagger.js": ("", "text/javascript"),
}
_SHOW_SWAGGER = """window.addEventListener("load", () => {
  window.ui = SwaggerUIBundle({
    url: "{mount}/openapi.json",
    dom_id: "#swagger-ui",
    deepLinking: true,
    validatorUrl: null,
    persistAuthorization: false,
    presets: [SwaggerUIBundle.presets.apis, SwaggerUIStandalonePreset],
  });
});
"""
_SWAGGER = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>GPUStack API</title>
<link rel="icon" href="data:,"><link rel="stylesheet" href="{mount}/docs/assets/swagger-ui.css"></head>
<body><div id="swagger-ui"></div>
<script src="{mount}/docs/assets/swagger-ui.js"></script>
<script src="{mount}/docs/assets/swagger-preset.js"></script>
<script src="{mount}/docs/assets/show-swagger.js"></script></body></html>
"""
_REDOC = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>GPUStack API</title><link rel="icon" href="data:,"></head>
<body><redoc spec-url="{mount}/openapi.json"></redoc>
<script src="{mount}/docs/assets/redoc.js"></script></body></html>
"""
#: Both pages write style elements, and ReDoc searches in a worker made from a blob. Nothing else may load.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self' "
    "data:; connect-src 'self'; worker-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Description:
    """The OpenAPI document of one application, made when it is first asked for."""

    def __init__(self) -> None:
        self._made: dict[str, Any] | None = None
        self._latest: tuple[str, bytes] | None = None

    def of(self, app: Litestar, mount: str) -> bytes:
        """Return the document of ``app``, which is mounted at ``mount``, as JSON. Takes some tenths of a second at first."""
        from gpustack.server.openapi import build

        latest = self._latest
        if latest is None or latest[0] != mount:
            made = self._made = self._made or build(app)
            latest = self._latest = (mount, json.dumps({**made, "servers": [{"url": mount or "/"}]}).encode())
        return latest[1]


def asset(name: str, mount: str = "") -> tuple[bytes, str]:
    """Return content and type of a file of the pages of a server at ``mount``. Raises NotFoundException for other names."""
    if name not in _ASSETS:
        raise NotFoundException
    file, kind = _ASSETS[name]
    if not file:
        return _at(mount, _SHOW_SWAGGER).encode(), kind
    spec = find_spec("offapi")
    if spec is None or spec.origin is None:
        raise NotFoundException
    return (Path(spec.origin).parent / file).read_bytes(), kind


def _at(mount: str, text: str) -> str:
    # Percent-encoded, so that it means nothing in HTML or JavaScript.
    return text.replace("{mount}", mount)


def _html(request: Request[Any, Any, Any], page: str) -> Response[str]:
    return Response(
        _at(mount_of(request.scope), page),
        media_type="text/html",
        headers={"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff"},
    )


@get("/", opt=_PUBLIC, include_in_schema=False, status_code=307)
async def front(request: Request[Any, Any, Any]) -> Redirect:
    """Lead whoever opens the server's address to something to read."""
    return Redirect(f"{mount_of(request.scope)}/docs")


@get("/docs", opt=_PUBLIC, include_in_schema=False, sync_to_thread=False)
def swagger(request: Request[Any, Any, Any]) -> Response[str]:
    """Show the API with Swagger UI."""
    return _html(request, _SWAGGER)


@get("/redoc", opt=_PUBLIC, include_in_schema=False, sync_to_thread=False)
def redoc(request: Request[Any, Any, Any]) -> Response[str]:
    """Show the API with ReDoc."""
    return _html(request, _REDOC)


@get("/docs/assets/{name:str}", opt=_PUBLIC, include_in_schema=False, sync_to_thread=True)
def assets(request: Request[Any, Any, Any], name: FromPath[str]) -> Response[bytes]:
    """Return a file of the two pages."""
    content, kind = asset(name, mount_of(request.scope))
    return Response(
        content,
        media_type=kind,
        headers={"Cache-Control": "max-age=86400", "X-Content-Type-Options": "nosniff"},
    )


@get("/openapi.json", opt=_PUBLIC, include_in_schema=False, sync_to_thread=True)
def description(request: Request[Any, Any, Any]) -> Response[bytes]:
    """Return the API's description."""
    made = request.app.state.description.of(request.app, mount_of(request.scope))
    return Response(made, media_type="application/json")


HANDLERS = [front, swagger, redoc, assets, description]
