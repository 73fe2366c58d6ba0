"""The API's description, and pages that show it. All they load lies on this machine."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from litestar import Request, Response, get
from litestar.exceptions import NotFoundException
from litestar.params import FromPath
from litestar.response import Redirect

from gpustack.server.auth.caller import Access

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
    url: "/openapi.json",
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
<link rel="icon" href="data:,"><link rel="stylesheet" href="/docs/assets/swagger-ui.css"></head>
<body><div id="swagger-ui"></div>
<script src="/docs/assets/swagger-ui.js"></script>
<script src="/docs/assets/swagger-preset.js"></script>
<script src="/docs/assets/show-swagger.js"></script></body></html>
"""
_REDOC = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>GPUStack API</title><link rel="icon" href="data:,"></head>
<body><redoc spec-url="/openapi.json"></redoc>
<script src="/docs/assets/redoc.js"></script></body></html>
"""
#: Both pages write style elements, and ReDoc searches in a worker made from a blob. Nothing else may load.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self' "
    "data:; connect-src 'self'; worker-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def asset(name: str) -> tuple[bytes, str]:
    """Return content and type of a file of the pages. Raises NotFoundException for any other name."""
    if name not in _ASSETS:
        raise NotFoundException
    file, kind = _ASSETS[name]
    if not file:
        return _SHOW_SWAGGER.encode(), kind
    spec = find_spec("offapi")
    if spec is None or spec.origin is None:
        raise NotFoundException
    return (Path(spec.origin).parent / file).read_bytes(), kind


def _html(page: str) -> Response[str]:
    return Response(
        page,
        media_type="text/html",
        headers={"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff"},
    )


@get("/", opt=_PUBLIC, include_in_schema=False, status_code=307)
async def front() -> Redirect:
    """Lead whoever opens the server's address to something to read."""
    return Redirect("/docs")


@get("/docs", opt=_PUBLIC, include_in_schema=False, sync_to_thread=False)
def swagger() -> Response[str]:
    """Show the API with Swagger UI."""
    return _html(_SWAGGER)


@get("/redoc", opt=_PUBLIC, include_in_schema=False, sync_to_thread=False)
def redoc() -> Response[str]:
    """Show the API with ReDoc."""
    return _html(_REDOC)


@get("/docs/assets/{name:str}", opt=_PUBLIC, include_in_schema=False, sync_to_thread=True)
def assets(name: FromPath[str]) -> Response[bytes]:
    """Return a file of the two pages."""
    content, kind = asset(name)
    return Response(
        content,
        media_type=kind,
        headers={"Cache-Control": "max-age=86400", "X-Content-Type-Options": "nosniff"},
    )


@get("/openapi.json", opt=_PUBLIC, include_in_schema=False, sync_to_thread=True)
def description(request: Request[Any, Any, Any]) -> Response[bytes]:
    """Return the API's description."""
    from gpustack.server.openapi import document

    return Response(document(request.app), media_type="application/json")


HANDLERS = [front, swagger, redoc, assets, description]
