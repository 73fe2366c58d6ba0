"""Names that a shell completes: asked of the running server, quickly or not at all.

Nothing here may fail or talk: whoever presses TAB wants names or silence.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

#: Seconds that the server has to answer.
_PATIENCE = 0.15
_MOST = 500

Complete = Callable[[click.Context, click.Parameter, str], list[str]]


def models(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Complete the name of a model."""
    return _names(ctx, parameter, incomplete, "models")


def routes(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Complete the name of a model route."""
    return _names(ctx, parameter, incomplete, "model-routes")


def workers(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Complete the name of a worker."""
    return _names(ctx, parameter, incomplete, "workers")


def gpus(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Complete the id of a GPU."""
    typed = set(ctx.params.get(str(parameter.name)) or ())
    ids: list[str] = []
    with suppress(Exception):
        ids = [each["id"] for each in _asked(ctx, "/v2/gpu-devices", "")["items"]]
    return sorted(each for each in ids if each.startswith(incomplete) and each not in typed)


def models_and_instances(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Complete the name of a model or of one of its copies."""
    return _names(ctx, parameter, incomplete, "models", "model-instances")


def sources(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete a model of the catalog, or a file."""
    from click.shell_completion import CompletionItem

    names = _names(ctx, parameter, incomplete, "model-sets")
    # In this order: bash forgets what came before an item of this type.
    return [CompletionItem(incomplete, type="file"), *(CompletionItem(name) for name in names)]


def _names(ctx: click.Context, parameter: click.Parameter, incomplete: str, *lists: str) -> list[str]:
    """Return the names in the lists that begin so, without those that were typed already."""
    typed = ctx.params.get(str(parameter.name)) or ()
    before = {typed} if isinstance(typed, str) else set(typed)
    names: list[str] = []
    # Whatever it was, there is nobody to tell, and no point in asking for the next list.
    with suppress(Exception):
        for what in lists:
            names += [each["name"] for each in _asked(ctx, f"/v2/{what}", incomplete)["items"]]
    return sorted(name for name in names if name.startswith(incomplete) and name not in before)


def _asked(ctx: click.Context, path: str, search: str) -> Any:
    """Return what the server answers; http.client, because importing a better one takes longer than the answer."""
    import http.client

    from gpustack.cli.target import Target

    server, api_key, data_dir = (ctx.params.get(name) or "" for name in ("server", "api_key", "data_dir"))
    at = Target(server=server, api_key=api_key, data_dir=data_dir).connection()
    url = urlsplit(at.url)
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    connection = kind(url.hostname or "", url.port, timeout=_PATIENCE)
    try:
        query = urlencode({"search": search, "perPage": _MOST} if search else {"perPage": _MOST})
        headers = {"Authorization": f"Bearer {at.credential}"}
        connection.request("GET", f"{url.path.rstrip('/')}{path}?{query}", headers=headers)
        return json.load(connection.getresponse())
    finally:
        connection.close()
