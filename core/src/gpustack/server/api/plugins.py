"""``/v2/plugins``: what the installed plugins bring, and what of them did not work."""

from __future__ import annotations

from litestar import Response, get

from gpustack.extensions import Catalogue
from gpustack.extensions.kinds import KINDS
from gpustack.schemas.plugins import PluginFailurePublic, PluginPublic, PluginsPublic, PluginStatePublic
from gpustack.server.auth.caller import Req
from gpustack.server.body import one
from gpustack.server.services import services


@get("/plugins", tags=["Plugins"])
async def list_plugins(request: Req) -> Response[PluginsPublic]:
    """List every extension of this server by its plugin, and every failure by its reason."""
    return one(describe(services(request).catalogue))


def describe(catalogue: Catalogue) -> PluginsPublic:
    """Return the catalogue as the API shows it."""
    # A kind is called as its hook has it, in the singular.
    kinds = {
        kind.hook.removeprefix("register_").removesuffix("s"): dict(getattr(catalogue, kind.field))
        for kind in KINDS
    }
    items = [
        PluginPublic(
            kind=kind, name=name, plugin=each.plugin, distribution=each.distribution, version=each.version
        )
        for kind, members in kinds.items()
        for name, each in sorted(members.items())
    ]
    failures = [
        PluginFailurePublic(
            plugin=each.plugin,
            distribution=each.distribution,
            version=each.version,
            stage=each.stage,
            error=each.error,
        )
        for each in catalogue.failures
    ]
    plugins = [
        PluginStatePublic(
            name=each.name,
            distribution=each.distribution,
            version=each.version,
            state=each.state,
            reason=each.reason,
        )
        for each in catalogue.plugins.values()
    ]
    return PluginsPublic(items=items, failures=failures, plugins=plugins)


HANDLERS = [list_plugins]
