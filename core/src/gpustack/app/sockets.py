"""The sockets that the supervisor listens on for its children: taken over from before where they fit, else opened."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gpustack.kit.net import LOOPBACK, listen

ANYWHERE = "0.0.0.0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One socket that the settings ask for; ``port`` 0 takes any. ``name`` is the option that changes it."""

    host: str
    port: int
    name: str

    @property
    def option(self) -> str:
        """The flag of that option."""
        return "--" + self.name.replace("_", "-")

    def fits(self, sock: socket.socket) -> bool:
        """Tell whether ``sock`` is what is wanted."""
        host, port = sock.getsockname()[:2]
        return host == self.host and self.port in (0, port)

    def open(self) -> socket.socket:
        """Return such a socket, listening. Raises GPUStackError with one line that names the option."""
        return listen(self.port, host=self.host, option=self.option)


def wanted(settings: Mapping[str, Any]) -> dict[str, Wanted]:
    """Return what these settings ask for.

    ``http`` is the server's public port, ``https`` the same with TLS, and ``api`` the same for this machine alone.
    ``door`` is the worker's port, which other machines need only where the server is another one. ``worker`` is the
    worker's own API, which the door passes requests to.
    """
    sockets: dict[str, Wanted] = {}
    if not settings["server_url"]:
        sockets["http"] = Wanted(host=ANYWHERE, port=settings["port"], name="port")
        sockets["api"] = Wanted(host=LOOPBACK, port=settings["api_port"], name="api_port")
        if settings["ssl_certfile"]:
            sockets["https"] = Wanted(host=ANYWHERE, port=settings["tls_port"], name="tls_port")
    if not settings["disable_worker"]:
        host = ANYWHERE if settings["server_url"] else LOOPBACK
        sockets["door"] = Wanted(host=host, port=settings["worker_port"], name="worker_port")
        sockets["worker"] = Wanted(host=LOOPBACK, port=0, name="worker_port")
    return sockets


def together(
    inherited: Mapping[str, socket.socket], kept: Mapping[str, socket.socket]
) -> dict[str, socket.socket]:
    """Return the sockets that are open already: those of the program before us, and those that a door has kept."""
    for name, sock in kept.items():
        if name in inherited:
            sock.close()
    return {**kept, **inherited}


def open_new(
    asked: Mapping[str, Wanted], present: Mapping[str, socket.socket]
) -> tuple[dict[str, socket.socket], set[str]]:
    """Open what of ``asked`` is not among ``present``; return the new sockets, and the names of those in the way.

    A socket of ours is in the way when it has the wanted port at another address: it has to be closed first. Raises
    GPUStackError, with nothing left open, when a port cannot be had.
    """
    opened: dict[str, socket.socket] = {}
    blocked: set[str] = set()
    ports = {sock.getsockname()[1] for sock in present.values()}
    try:
        for name, want in asked.items():
            if name in present and want.fits(present[name]):
                continue
            if want.port in ports:
                blocked.add(name)
            else:
                opened[name] = want.open()
    except BaseException:
        for sock in opened.values():
            sock.close()
        raise
    return opened, blocked
