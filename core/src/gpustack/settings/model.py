"""The settings as the program uses them: typed, checked, frozen."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from gpustack.kit.paths import default_data_dir
from gpustack.kit.text import GIB

_LAST_PORT = 65535
_HOST_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,62}(\.[A-Za-z0-9_][A-Za-z0-9_-]{0,62})*")
_YES = {"true", "1", "yes", "on"}
_NO = {"false", "0", "no", "off"}


def _boolean(value: object) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text in _YES:
        return True
    if text in _NO:
        return False
    raise ValueError("give true or false")


def _port(value: object) -> int:
    try:
        port = int(str(value))
    except ValueError:
        port = -1
    if isinstance(value, bool) or not 0 <= port <= _LAST_PORT:
        raise ValueError(f"give a port from 0 to {_LAST_PORT}")
    return port


def _path(value: object) -> object:
    """Make a path absolute here and now: children have other working directories."""
    if isinstance(value, str):
        if not value.strip() or "\0" in value:
            raise ValueError("give a path")
        return Path(value).expanduser().absolute()
    return value


def _password(value: object) -> str:
    text = str(value)
    if not 8 <= len(text) <= 1024:
        raise ValueError("give a password of at least 8 characters")
    return text


def _url(value: object) -> object:
    if not isinstance(value, str) or not value:
        return value
    parts = urlsplit(value.rstrip("/"))
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("give a URL such as http://10.0.0.1 or https://gpustack.example.com:8443")
    return value.rstrip("/")


def _host(value: object) -> str:
    text = str(value).strip()
    try:
        return str(ip_address(text)) if text else ""
    except ValueError:
        # Names whose last part is a number are addresses with a slip of the pen.
        if len(text) > 253 or not _HOST_NAME.fullmatch(text) or text.rsplit(".", 1)[-1].isdecimal():
            raise ValueError(
                "give an IP address or a host name, such as 10.0.0.1 or gpustack.example.com"
            ) from None
    return text


Boolean = Annotated[bool, BeforeValidator(_boolean)]
Port = Annotated[int, BeforeValidator(_port)]
AbsolutePath = Annotated[Path, BeforeValidator(_path)]


def _program(value: object) -> object:
    if isinstance(value, str) and value:
        path = Path(value).expanduser().absolute()
        if not (path.is_file() and os.access(path, os.X_OK)):
            raise ValueError("there is no such program; leave the option out to use GPUStack's own pipx")
        return str(path)
    return value


class PortRange(BaseModel):
    """Ports from ``first`` to ``last``, both included; iterating gives each."""

    model_config = ConfigDict(frozen=True)

    first: int = Field(ge=1, le=_LAST_PORT)
    last: int = Field(ge=1, le=_LAST_PORT)

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        first, dash, last = value.partition("-")
        if not (dash and first.strip().isdecimal() and last.strip().isdecimal()):
            raise ValueError("give two ports as N1-N2, e.g. 40000-40063")
        if not 1 <= int(first) <= int(last) <= _LAST_PORT:
            raise ValueError(f"give two ports from 1 to {_LAST_PORT}, the lower one first")
        return {"first": int(first), "last": int(last)}

    def ports(self) -> Iterator[int]:
        """Return each port, lowest first."""
        return iter(range(self.first, self.last + 1))

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


class SystemReserved(BaseModel):
    """Memory kept for the system, in GiB: ``ram`` of the worker, ``vram`` of each GPU."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ram: float = Field(default=2, ge=0)
    vram: float = Field(default=1, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        try:
            parsed = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError('give JSON such as {"ram": 2, "vram": 1}') from error
        if not isinstance(parsed, dict):
            raise ValueError('give a JSON object such as {"ram": 2, "vram": 1}')
        return parsed

    def in_bytes(self) -> dict[str, int]:
        """Return both in bytes."""
        return {"ram": int(self.ram * GIB), "vram": int(self.vram * GIB)}


class Settings(BaseModel):
    """The effective settings of one ``gpustack start``. Field names are the keys of the YAML file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    advertise_address: Annotated[str, BeforeValidator(_host)] = ""
    port: Port = 80
    debug: Boolean = False
    data_dir: AbsolutePath = Field(default_factory=default_data_dir)
    cache_dir: AbsolutePath = Path()
    huggingface_token: str = ""
    bin_dir: AbsolutePath = Path()
    #: Empty is the pipx that came with GPUStack, or the one on PATH.
    pipx_path: Annotated[str, BeforeValidator(_program)] = ""
    disable_worker: Boolean = False
    bootstrap_password: Annotated[str, BeforeValidator(_password)] | None = None
    #: Empty is the embedded PostgreSQL.
    database_url: str = Field(default="", pattern=r"^(postgres(ql)?://.+)?$")
    disable_openapi_docs: Boolean = False
    #: Empty lets the server make one, which it keeps in its data directory.
    token: str = ""
    #: Empty when the token was given by itself.
    token_file: AbsolutePath | None = None
    #: Empty makes this machine the server.
    server_url: Annotated[str, BeforeValidator(_url)] = ""
    #: Empty is the host's name.
    worker_name: str = ""
    worker_port: Port = 10150
    service_port_range: PortRange = PortRange(first=40000, last=40063)
    log_dir: AbsolutePath = Path()
    system_reserved: SystemReserved = SystemReserved()
    enable_hf_transfer: Boolean = False
    enable_hf_xet: Boolean = False

    @model_validator(mode="before")
    @classmethod
    def _places_below_data_dir(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        data_dir = Path(str(values.get("data_dir") or default_data_dir())).expanduser().absolute()
        below = {f"{name}_dir": str(data_dir / name) for name in ("bin", "log", "cache")}
        return {**below, **values}
