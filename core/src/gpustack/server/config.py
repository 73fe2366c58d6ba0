"""What the server needs to know to run."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpustack.dataplane.cors import CorsPolicy
from gpustack.dataplane.http import Limits
from gpustack.kit.errors import GPUStackError, system_line
from gpustack.kit.live import Live
from gpustack.kit.net import LOOPBACK
from gpustack.kit.paths import make_dir, write_atomic
from gpustack.settings.gateway import NO_GATEWAY, ChosenGateway

log = logging.getLogger(__name__)

#: The name of the first administrator, and the file that holds the password made up for it.
ADMIN = "admin"
FIRST_LOGIN_FILE = "initial_admin_password"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tunables:
    """Settings that are applied without a restart."""

    #: None is no sharing with pages of other origins.
    cors: CorsPolicy | None = None
    #: The files of certificate and key; None without TLS.
    tls: tuple[Path, Path] | None = None
    #: Where the update check asks for the latest version; empty asks nobody.
    update_check_url: str = ""
    #: Every option as people may see it.
    effective: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Settings of one server. Times are seconds."""

    data_dir: Path
    bin_dir: Path
    version: str
    git_commit: str = ""
    #: Password of the first administrator; None makes one and writes it to the data directory.
    bootstrap_password: str | None = None
    #: What a worker shows to join; empty uses the one kept in the data directory.
    registration_token: str = ""
    disable_openapi_docs: bool = False
    #: How long instances of a worker that is lost from sight keep their place.
    replace_after: float = 60.0
    #: What may change while the server runs.
    tunables: Live[Tunables] = field(default_factory=lambda: Live(Tunables()))
    #: Addresses of this machine: a worker that calls from one of them is here, and may name loopback as its own.
    own_addresses: frozenset[str] = field(default_factory=lambda: frozenset({LOOPBACK}))
    #: The secret that a gateway shows with what it passes on; empty without one.
    gateway_mark: str = ""
    #: The gateway that was chosen, and where clients reach our own ports.
    gateway: ChosenGateway = NO_GATEWAY
    urls: tuple[str, ...] = ()
    #: What clients may take where no gateway stands before the server.
    limits: Limits = field(default_factory=Limits)
    #: Of the head of the first Ray on a host, as :class:`gpustack.schemas.GroupOrders` names them.
    ray_ports: Mapping[str, int] = field(default_factory=dict)
    #: Connections to the database: kept, and at most.
    pool: tuple[int, int] = (1, 10)
    database_wait: float = 10.0
    #: How long requests wait for a database that went away, before they are answered that it is.
    database_patience: float = 15.0
    #: How long requests in flight may go on when the server stops.
    drain: float = 3.0
    #: How much longer when the database is away and nobody waits: the next supervisor brings it back.
    drain_alone: float = 6.0

    def built_in_worker(self) -> str:
        """Return the uuid of the worker that runs in the server's own data directory; empty without one. Blocks."""
        try:
            path = self.data_dir / "worker" / "worker_uuid"
            return path.read_text(encoding="ascii", errors="replace").strip()
        except FileNotFoundError:
            return ""
        except OSError as error:
            log.warning("the worker of this machine is asked as others are: %s", system_line(error))
            return ""


def kept_secret(path: Path, given: str = "") -> str:
    """Return the secret in the file ``path`` (0600), made at first use; ``given`` replaces what is there."""
    make_dir(path.parent, what="directory", mode=0o700)
    present = _secret(path)
    if present and given in ("", present):
        return present
    value = given or secrets.token_hex(32)
    if present == "" and not given:
        log.warning("%s was empty; it holds a new secret now, and who used the old one needs that", path)
    write_atomic(path, value, mode=0o600)
    return value


def _secret(path: Path) -> str | None:
    """Return what the file holds, None when there is none."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise GPUStackError(
            f"{path} cannot be read: {error.strerror}; remove it or change its owner"
        ) from error
    except UnicodeDecodeError as error:
        raise GPUStackError(f"{path} is damaged: it holds no secret; remove it for a new one") from error
    if not text.isprintable():
        raise GPUStackError(f"{path} is damaged: it holds no secret; remove it for a new one")
    return text
