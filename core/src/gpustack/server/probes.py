"""``/healthz``, ``/readyz`` and ``/version``: for whoever watches the server, without credentials."""

from __future__ import annotations

from typing import Any

from litestar import Request, Response, get, head

from gpustack.kit.errors import Unavailable
from gpustack.schemas import VersionInfo
from gpustack.server.auth.caller import Access
from gpustack.server.body import one
from gpustack.server.services import services

_PUBLIC = {"access": Access.PUBLIC}


@get("/healthz", opt=_PUBLIC, sync_to_thread=False, tags=["Probes"], media_type="text/plain")
def healthz() -> str:
    """Tell that the process answers."""
    return "ok"


@head("/healthz", opt=_PUBLIC, sync_to_thread=False, tags=["Probes"])
def healthz_head() -> None:
    """Tell that the process answers."""


@head("/readyz", opt=_PUBLIC, tags=["Probes"])
async def readyz_head(request: Request[Any, Any, Any]) -> None:
    """Tell that the database answers and routing is loaded; 503 otherwise."""
    await _check_ready(request)


@get("/readyz", opt=_PUBLIC, tags=["Probes"], media_type="text/plain")
async def readyz(request: Request[Any, Any, Any]) -> str:
    """Tell that the database answers and routing is loaded; 503 otherwise."""
    await _check_ready(request)
    return "ok"


async def _check_ready(request: Request[Any, Any, Any]) -> None:
    parts = services(request)
    if not parts.routing.loaded:
        raise Unavailable("the routing table is not loaded yet", retry_after=1)
    await parts.store.ping()


@get("/version", opt=_PUBLIC, sync_to_thread=False, tags=["Probes"])
def version(request: Request[Any, Any, Any]) -> Response[VersionInfo]:
    """Return the version of this server."""
    config = services(request).config
    return one(VersionInfo(version=config.version, git_commit=config.git_commit))


HANDLERS = [healthz, healthz_head, readyz, readyz_head, version]
