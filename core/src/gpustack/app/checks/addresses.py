"""Where other things are: the database, and this machine on the network."""

from __future__ import annotations

from collections.abc import Iterator

from gpustack.app.checks.finding import Finding
from gpustack.kit.errors import SettingsError
from gpustack.kit.net import interface_addresses
from gpustack.settings.load import Loaded


def database(loaded: Loaded) -> Iterator[Finding]:
    """Check the form of the database's URL."""
    if not loaded.settings.database_url:
        return
    from gpustack.db.url import parse

    try:
        parse(loaded.settings.database_url)
    except SettingsError as error:
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
