"""The container engine of this machine: where it is, and whether it can run engines. Light: no SDK is imported.

Docker and Podman are spoken to alike, by the socket that both listen on. Where ``DOCKER_HOST`` is set it alone counts;
else the usual places are looked at, the user's own before the system's.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gpustack.kit.errors import GPUStackError
from gpustack.kit.limits import user_id

#: Seconds that it may take to answer a question about itself.
PATIENCE = 3.0
#: Bytes of an answer that are read at most.
_LONGEST = 4 << 20


class NoContainerEngine(GPUStackError):
    """No container can be run on this machine now; one line with the reason and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    """A container engine that answers."""

    #: As ``DOCKER_HOST`` has it.
    url: str
    #: ``Docker`` or ``Podman``.
    kind: str
    version: str
    #: The newest version of Docker's API that it speaks.
    api: str
    #: It runs as an ordinary user, who is root in its containers.
    rootless: bool = False
    #: Where it keeps images.
    root: str = ""

    @property
    def name(self) -> str:
        """Return what people call it."""
        return f"{self.kind} {self.version}"


def find(environ: Mapping[str, str] | None = None) -> Daemon:
    """Return the container engine of this machine. Blocks, for a few seconds where one hangs.

    Raises NoContainerEngine with one line when there is none that can run engines.
    """
    env = os.environ if environ is None else environ
    if host := env.get("DOCKER_HOST", "").strip():
        return ask(host, named="DOCKER_HOST")
    troubles = []
    for path in places(env):
        if not path.exists():
            continue
        try:
            return ask(f"unix://{path}")
        except NoContainerEngine as error:
            troubles.append(error)
    if troubles:
        raise troubles[0]
    raise NoContainerEngine(
        "no container engine is on this worker: install Docker or Podman and start its service (for Podman: "
        "systemctl enable --now podman.socket), or name its socket in DOCKER_HOST"
    )


def places(env: Mapping[str, str]) -> list[Path]:
    """Return where the socket of a container engine usually is, in the order in which they are tried."""
    own = Path(env.get("XDG_RUNTIME_DIR") or _runtime_dir())
    home = Path(env.get("HOME") or "/")
    system = [Path("/var/run/docker.sock"), Path("/run/podman/podman.sock")]
    users = [own / "docker.sock", own / "podman" / "podman.sock", home / ".docker" / "run" / "docker.sock"]
    # Root's engine gives the host's own network, and an ordinary user may not be let to it.
    first = system if not user_id() else [system[0], *users, system[1]]
    return list(dict.fromkeys([*first, *users]))


def _runtime_dir() -> str:
    return f"/run/user/{user_id()}" if user_id() is not None else "/"


def ask(url: str, *, named: str = "") -> Daemon:
    """Return what the engine at ``url`` says of itself. Raises NoContainerEngine when it cannot be used.

    ``named`` is the variable that named it.
    """
    where = f"{named}={url}" if named else url.removeprefix("unix://")
    address = _address(url, where)
    try:
        version = _get(address, "/version")
        info = _get(address, "/info")
    except FileNotFoundError:
        raise NoContainerEngine(
            f"no container engine is at {where}: start its service, or name its socket in DOCKER_HOST"
        ) from None
    except PermissionError:
        raise NoContainerEngine(
            f"the container engine at {where} does not let this user in: add the user that runs the worker to the "
            "group that owns the socket (usually `docker`), and start the worker anew"
        ) from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        why = str(error) or type(error).__name__
        raise NoContainerEngine(
            f"the container engine at {where} does not answer ({why}): is its service running?"
        ) from error
    parts = version.get("Components") or [{}]
    kind = "Podman" if any("podman" in str(part.get("Name", "")).lower() for part in parts) else "Docker"
    options = info.get("SecurityOptions") or []
    daemon = Daemon(
        url=url,
        kind=kind,
        version=str(version.get("Version", "")),
        api=str(version.get("ApiVersion", "")),
        rootless=any("name=rootless" in str(each) for each in options),
        root=str(info.get("DockerRootDir") or ""),
    )
    if daemon.kind == "Docker" and daemon.rootless:
        raise NoContainerEngine(
            f"the Docker at {where} runs without root, and keeps its containers in a network of their own, where the "
            "worker cannot reach engines: use Podman, or a Docker that runs as root"
        )
    return daemon


def _address(url: str, where: str) -> str | tuple[str, int]:
    """Return the path of its socket, or host and port on loopback."""
    parts = urlsplit(url)
    if parts.scheme == "unix" and sys.platform != "win32":
        return parts.path or f"/{parts.netloc}"
    try:
        loopback = parts.hostname == "localhost" or ipaddress.ip_address(parts.hostname or "").is_loopback
        if parts.scheme in ("tcp", "http") and loopback:
            return parts.hostname or "", parts.port or 2375
    except ValueError:
        pass
    raise NoContainerEngine(
        f"{where} is no container engine of this machine: engines run where the worker is, so name a socket "
        "(unix:///run/docker.sock) or a port on loopback (tcp://127.0.0.1:2375)"
    )


def _get(address: str | tuple[str, int], path: str) -> dict[str, Any]:
    connection = _Connection(address)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read(_LONGEST)
        if answer.status != http.client.OK:
            raise ValueError(f"it answers {path} with status {answer.status}")
        found = json.loads(body)
        if not isinstance(found, dict):
            raise ValueError(f"it answers {path} with what is no object")
        return found
    finally:
        connection.close()


class _Connection(http.client.HTTPConnection):
    """HTTP over a socket of either kind."""

    def __init__(self, address: str | tuple[str, int]) -> None:
        super().__init__("localhost", timeout=PATIENCE)
        self._at = address

    def connect(self) -> None:
        """Open the connection."""
        family = socket.AF_UNIX if isinstance(self._at, str) else socket.AF_INET
        if isinstance(self._at, tuple) and ":" in self._at[0]:
            family = socket.AF_INET6
        self.sock = socket.socket(family, socket.SOCK_STREAM)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(self._at)
