"""Where other things are: the database, and this machine on the network."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from gpustack.app.checks.finding import Finding
from gpustack.extensions import load_catalogue
from gpustack.kit.errors import GPUStackError
from gpustack.kit.net import interface_addresses
from gpustack.plugin import Host
from gpustack.settings.load import Loaded

log = logging.getLogger(__name__)


def database(loaded: Loaded) -> Iterator[Finding]:
    """Check that a plugin knows the database's URL, and finds it well formed."""
    url = loaded.settings.database_url
    if not url:
        return
    from gpustack.db.source import database_for, source_of

    settings = loaded.settings
    host = Host(log=log, data_dir=settings.data_dir, bin_dir=settings.bin_dir)
    try:
        source_of(url, database_for(url, lambda: load_catalogue(given=settings.plugins), host))
    except GPUStackError as error:
        text = error.message.replace("--database-url", loaded.origin("database_url"), 1)
        yield Finding(level="problem", options=("database_url",), text=text)


def interface(loaded: Loaded) -> Iterator[Finding]:
    """Check that the network interface is there and has an address."""
    name = loaded.settings.worker_ifname
    if not name:
        return
    found = interface_addresses()
    if found.get(name):
        return
    others = ", ".join(each for each in sorted(found) if found[each])
    wrong = "has no address" if name in found else "is no network interface of this machine"
    yield Finding(
        level="problem",
        options=("worker_ifname",),
        text=f"{loaded.origin('worker_ifname')} {name!r} {wrong}; give one of {others}",
    )
