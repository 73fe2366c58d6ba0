"""From the flags of ``gpustack start`` to the supervisor.

Run as ``python -m gpustack.app.start`` it only checks: flags come in as JSON, settings or what is wrong go out as JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from importlib import import_module
from typing import Any, NoReturn
from urllib.parse import urlsplit

from gpustack.app.checks import examine
from gpustack.app.chosen_gateway import choose
from gpustack.app.restart import replace
from gpustack.app.rundir import refuse_newer
from gpustack.extensions import Catalogue, load_catalogue
from gpustack.kit.errors import GPUStackError, SettingsError
from gpustack.kit.init import serve_as_init
from gpustack.kit.net import spare_proxies
from gpustack.kit.paths import make_dir
from gpustack.plugin import Host
from gpustack.settings.gateway import NO_GATEWAY, ChosenGateway
from gpustack.settings.load import Flags, Loaded
from gpustack.settings.model import Settings
from gpustack.settings.shown import shown
from gpustack.settings.sources import blocked_plugins, shorten_key

log = logging.getLogger(__name__)

#: Seconds for a database that the settings name anew to take a connection.
_REACH = 5.0


def start(flags: Flags, catalogue: Catalogue, warn: Callable[[str], None]) -> NoReturn:
    """Check the settings, then become the supervisor.

    ``flags`` are the given options by name, as text; ``warn`` gets a line for each thing that is not wrong and should be
    known. Raises SettingsError with all that is wrong. The supervisor is a fresh interpreter, so that the memory of what
    reads settings is not kept for months.
    """
    serve_as_init()
    found = examine(flags, catalogue.options)
    for line in [*found.warnings, *_unknown_blocked(catalogue)]:
        warn(line)
    settings = found.settings()
    # Seen by all that runs below: engines and their helpers talk to each other over loopback too.
    spare_proxies(os.environ, urlsplit(settings.server_url).hostname)
    replace(described(found.loaded, choose(settings, catalogue)), flags, None)


def _unknown_blocked(catalogue: Catalogue) -> Iterator[str]:
    """Yield a line for each name in GPUSTACK_PLUGINS_BLOCK that no plugin has: it is likely misspelt, and blocks nothing."""
    known = {each.name for each in catalogue.plugins.values()}
    for name in sorted(blocked_plugins() - known):
        near = get_close_matches(name, known, n=1)
        yield (
            f"GPUSTACK_PLUGINS_BLOCK names {shorten_key(name)}, and no plugin of that name is installed"
            + (f"; did you mean {near[0]}?" if near else "")
        )


def described(loaded: Loaded, gateway: ChosenGateway = NO_GATEWAY) -> dict[str, Any]:
    """Return the settings as JSON can hold them, with how people may see them, and the gateway that they choose."""
    found = {"effective": tuple(shown(loaded)), "gateway": gateway}
    return loaded.settings.model_copy(update=found).model_dump(mode="json")


def check(flags: Flags, database_url: str = "") -> dict[str, Any]:
    """Return ``settings`` and ``warnings`` for these flags, or ``error`` and whether the settings are to blame.

    ``database_url`` is the one in use: only another one is tried, since the present one may be away for a moment.
    """
    try:
        catalogue = load_catalogue()
        found = examine(flags, catalogue.options)
        settings = found.settings()
        gateway = choose(settings, catalogue)
        refuse_newer(settings.data_dir)
        _check_places(settings)
        if not settings.server_url and settings.database_url not in ("", database_url):
            asyncio.run(_reach(settings))
    except GPUStackError as error:
        return {"error": error.message, "settings_are_wrong": isinstance(error, SettingsError)}
    for role in _roles(settings):
        import_module(f"gpustack.app.{role}_role")
    return {"settings": described(found.loaded, gateway), "warnings": found.warnings}


def _check_places(settings: Settings) -> None:
    """Make the directories as those who use them would; raises one line for one that cannot be used."""
    make_dir(settings.log_dir, what="--log-dir")
    if not settings.disable_worker:
        make_dir(settings.bin_dir, what="--bin-dir")
        make_dir(settings.cache_dir, what="--cache-dir")


async def _reach(settings: Settings) -> None:
    """Open a connection to an external database, within seconds; raises one line when that cannot be done."""
    from gpustack.db.errors import translated
    from gpustack.db.source import database_for, source_of

    url = settings.database_url
    host = Host(log=log, data_dir=settings.data_dir, bin_dir=settings.bin_dir)
    async with database_for(url, lambda: load_catalogue(given=settings.plugins), host) as database:
        source = source_of(url, database)
        try:
            async with asyncio.timeout(_REACH):
                with translated(source.where):
                    connection = await source.open()
        except TimeoutError:
            raise GPUStackError(f"{source.where} does not answer within {_REACH:.0f} s") from None
        connection.terminate()


def _roles(settings: Settings) -> Iterator[str]:
    """Yield the roles that will run; a program that cannot be imported must not take the place of one that works."""
    if not settings.server_url:
        yield "server"
    if not settings.disable_worker:
        yield "worker"
    yield "door"


if __name__ == "__main__":
    given = json.load(sys.stdin)
    # A plugin may print when it is imported.
    with contextlib.redirect_stdout(sys.stderr):
        said = check(given["flags"], given["database_url"])
    sys.stdout.write(json.dumps(said))
