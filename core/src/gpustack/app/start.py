"""From the flags of ``gpustack start`` to the supervisor.

Run as ``python -m gpustack.app.start`` it only checks: flags come in as JSON, settings or what is wrong go out as JSON.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, NoReturn
from urllib.parse import urlsplit

from gpustack.app.restart import replace
from gpustack.app.rundir import refuse_newer
from gpustack.kit.errors import GPUStackError, SettingsError
from gpustack.kit.init import serve_as_init
from gpustack.kit.net import spare_proxies
from gpustack.settings.load import load
from gpustack.settings.model import Settings


def start(flags: Mapping[str, str]) -> NoReturn:
    """Check the settings, then become the supervisor.

    ``flags`` are the given options by name, as text. Raises SettingsError when something is wrong with them. The
    supervisor is a fresh interpreter, so that the memory of what reads settings is not kept for months.
    """
    serve_as_init()
    settings = load(flags)
    # Seen by all that runs below: engines and their helpers talk to each other over loopback too.
    spare_proxies(os.environ, urlsplit(settings.server_url).hostname)
    replace(settings.model_dump(mode="json"), flags, None)


def check(flags: Mapping[str, str]) -> dict[str, Any]:
    """Return ``settings`` for these flags, or ``error`` and whether the settings are to blame."""
    try:
        settings = load(flags)
        refuse_newer(settings.data_dir)
    except GPUStackError as error:
        return {"error": error.message, "settings_are_wrong": isinstance(error, SettingsError)}
    for role in _roles(settings):
        import_module(f"gpustack.app.{role}_role")
    return {"settings": settings.model_dump(mode="json")}


def _roles(settings: Settings) -> Iterator[str]:
    """Yield the roles that will run; a program that cannot be imported must not take the place of one that works."""
    if not settings.server_url:
        yield "server"
    if not settings.disable_worker:
        yield "worker"
    yield "door"


if __name__ == "__main__":
    sys.stdout.write(json.dumps(check(json.load(sys.stdin))))
