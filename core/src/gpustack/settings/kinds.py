"""The types of options: each turns what was typed into a checked value, or says in one clause what would be right."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import SplitResult, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)

from gpustack.kit.text import GIB

LAST_PORT = 65535
#: GiB; nothing has more, and far more could not be counted in bytes.
_MOST_MEMORY = 100_000
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
_HOST_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,62}(\.[A-Za-z0-9_][A-Za-z0-9_-]{0,62})*")
_DNS_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_DNS_NAME = re.compile(rf"{_DNS_LABEL.pattern}(\.{_DNS_LABEL.pattern})*")
#: As https://httpwg.org/specs/rfc9110.html#tokens has it.
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_RANGE = re.compile(r"\s*([0-9]{1,5})\s*-\s*([0-9]{1,5})\s*")
_REGISTRY = re.compile(
    r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]{1,5})?(/[a-z0-9]+([._-]+[a-z0-9]+)*)*"
)
_REPOSITORY = re.compile(
    r"([A-Za-z0-9.-]+(:[0-9]{1,5})?/)?[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*"
)
_DAY = 86_400
_MOST_DAYS = 36_500
#: What goes into a header as it is.
_SHARED_SECRET = re.compile(r"[!-~]{1,1024}")
_IMAGE = re.compile(rf"{_REPOSITORY.pattern}(:[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}})?(@sha256:[0-9a-f]{{64}})?")


def _port(value: object) -> int:
    try:
        port = int(str(value))
    except ValueError:
        port = -1
    if isinstance(value, bool) or not 0 <= port <= LAST_PORT:
        raise ValueError(f"give a port from 0 to {LAST_PORT}")
    return port


def _fixed_port(value: object) -> int:
    port = _port(value)
    if port == 0:
        raise ValueError(f"give a port from 1 to {LAST_PORT}: other machines have to know it")
    return port


def _count(value: object) -> int:
    try:
        count = int(str(value))
    except ValueError:
        count = 0
    if isinstance(value, bool) or not 1 <= count <= 1024:
        raise ValueError("give a whole number from 1 to 1024")
    return count


def _seconds(value: object) -> float:
    try:
        seconds = float(str(value))
    except ValueError:
        seconds = -1.0
    if isinstance(value, bool) or not 0 <= seconds <= _DAY:
        raise ValueError(f"give seconds from 0 to {_DAY}")
    return seconds


def absolute_path(value: object) -> Path:
    """Make a path absolute here and now: children have other working directories. Raises ValueError for none."""
    if isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise ValueError("give a path")
    try:
        return Path(value).expanduser().absolute()
    except RuntimeError:
        raise ValueError("give a path; there is no such user's home") from None
    except OSError:
        raise ValueError("give a path that begins with /: the working directory is gone") from None


def _line(value: object) -> str:
    text = str(value).strip()
    if not text.isprintable():
        raise ValueError("give text on one line")
    return text


def is_shared_secret(text: str) -> bool:
    """Tell whether ``text`` can be a token: it is sent in a header, and kept in a file."""
    return bool(_SHARED_SECRET.fullmatch(text))


def _shared_secret(value: object) -> str:
    text = str(value).strip()
    if text and not is_shared_secret(text):
        raise ValueError("give a token of letters, digits and punctuation (ASCII)")
    return text


def _password(value: object) -> str:
    text = str(value)
    if not 8 <= len(text) <= 1024:
        raise ValueError("give a password of at least 8 characters")
    return text


def split_url(text: str) -> SplitResult | None:
    """Return the parts of a URL, None for what is none; its port is a number."""
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        return None
    return parts


def _http_url(value: object) -> object:
    if value == "":
        return value
    text = str(value).strip().rstrip("/")
    parts = split_url(text)
    if (
        parts is None
        or parts.scheme not in ("http", "https")
        or not parts.hostname
        or parts.query
        or parts.fragment
        or not text.isprintable()
        or " " in text
    ):
        raise ValueError("give a URL such as http://10.0.0.1 or https://gpustack.example.com:8443")
    return text


def _path_or_url(value: object) -> object:
    if isinstance(value, str) and value.startswith(("http://", "https://")):
        parts = split_url(value)
        if parts is None or not parts.hostname or not value.isprintable():
            raise ValueError("give a path, or a URL such as https://example.com/catalog.yaml")
        return value
    return value if value == "" else str(absolute_path(value))


def _database_url(value: object) -> str:
    text = str(value).strip()
    # Which schemes there are is a matter of the installed plugins, and is checked where those are known.
    scheme, colon, rest = text.partition("://")
    if any(each.isspace() for each in text):
        raise ValueError("it has a space; write it as %20")
    if not text or (_SCHEME.fullmatch(scheme) and scheme not in ("http", "https") and colon and rest):
        return text
    raise ValueError("give a URL such as postgresql://user:password@host:5432/name")


def _host(value: object) -> str:
    text = str(value).strip()
    try:
        address = ip_address(text) if text else None
    except ValueError:
        # Names whose last part is a number are addresses with a slip of the pen.
        if len(text) > 253 or not _HOST_NAME.fullmatch(text) or text.rsplit(".", 1)[-1].isdecimal():
            raise ValueError(
                "give an IP address or a host name, such as 10.0.0.1 or gpustack.example.com"
            ) from None
        return text
    if address is not None and (address.is_unspecified or address.is_multicast):
        raise ValueError("give the address of one machine, such as 10.0.0.1")
    return str(address or "")


def _program(value: object) -> object:
    if value == "":
        return value
    path = absolute_path(value)
    try:
        found = path.is_file() and os.access(path, os.X_OK)
    except OSError:  # one with a name that is too long, or in a folder that is closed to us
        found = False
    if not found:
        raise ValueError("there is no such program; leave the option out to use GPUStack's own pipx")
    return str(path)


def _matching(pattern: re.Pattern[str], otherwise: str) -> AfterValidator:
    def check(text: str) -> str:
        if text and not pattern.fullmatch(text):
            raise ValueError(otherwise)
        return text

    return AfterValidator(check)


def _days(value: object) -> float:
    try:
        days = float(str(value))
    except ValueError:
        days = -1.0
    if isinstance(value, bool) or not 0 <= days <= _MOST_DAYS:
        raise ValueError(f"give a number of days from 0 to {_MOST_DAYS}")
    return days


def _some_time(seconds: float) -> float:
    if seconds <= 0:
        raise ValueError("give more than 0 seconds, such as 20")
    return seconds


def _network(text: str) -> str:
    try:
        return str(ip_network(text))
    except ValueError:
        raise ValueError(
            "give addresses or networks such as 10.0.0.9 or 10.0.0.0/24, without bits beyond the network's"
        ) from None


def _origin(text: str) -> str:
    if text == "*":
        return text
    parts = split_url(text)
    if (
        parts is None
        or parts.scheme not in ("http", "https")
        or not parts.hostname
        or parts.path not in ("", "/")
        or parts.query
        or parts.fragment
        or "@" in parts.netloc
        or "*" in text
    ):
        raise ValueError("give origins such as https://example.com, or * alone for any")
    # As browsers write them, or none would ever match.
    try:
        host = parts.hostname.encode("idna").decode()
    except UnicodeError as error:
        raise ValueError("give origins such as https://example.com; this name is none") from error
    port = "" if parts.port in (None, 80 if parts.scheme == "http" else 443) else f":{parts.port}"
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}{port}"


def _token(text: str) -> str:
    if not _TOKEN.fullmatch(text):
        raise ValueError("give names such as GET or Content-Type, or * alone for any")
    return text


class PortRange(BaseModel):
    """Ports from ``first`` to ``last``, both included; iterating gives each."""

    model_config = ConfigDict(frozen=True)

    first: int = Field(ge=1, le=LAST_PORT)
    last: int = Field(ge=1, le=LAST_PORT)

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: object) -> object:
        if isinstance(value, dict) and set(value) == {"first", "last"}:
            return value  # as we write it down ourselves
        match = _RANGE.fullmatch(str(value))
        if match is None:
            raise ValueError("give two ports as N1-N2, e.g. 40000-40063")
        first, last = match.groups()
        if not 1 <= int(first) <= int(last) <= LAST_PORT:
            raise ValueError(f"give two ports from 1 to {LAST_PORT}, the lower one first")
        return {"first": int(first), "last": int(last)}

    def ports(self) -> Iterator[int]:
        """Return each port, lowest first."""
        return iter(range(self.first, self.last + 1))

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


class SystemReserved(BaseModel):
    """Memory kept for the system, in GiB: ``ram`` of the worker, ``vram`` of each GPU."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ram: float = Field(default=2, ge=0, le=_MOST_MEMORY, allow_inf_nan=False)
    vram: float = Field(default=1, ge=0, le=_MOST_MEMORY, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: object) -> object:
        parsed = value
        if isinstance(value, str):
            try:
                parsed = json.loads(value)
            except (ValueError, RecursionError) as error:
                raise ValueError('give JSON such as {"ram": 2, "vram": 1}') from error
        if not isinstance(parsed, dict | SystemReserved):
            raise ValueError('give a JSON object such as {"ram": 2, "vram": 1}')
        if isinstance(parsed, dict) and any(isinstance(parsed.get(key), bool) for key in ("ram", "vram")):
            raise ValueError('give numbers, as in {"ram": 2, "vram": 1}')
        return parsed

    def in_bytes(self) -> dict[str, int]:
        """Return both in bytes."""
        return {"ram": int(self.ram * GIB), "vram": int(self.vram * GIB)}

    def __str__(self) -> str:
        return json.dumps({"ram": _short(self.ram), "vram": _short(self.vram)})


def _short(number: float) -> float | int:
    return int(number) if float(number).is_integer() else number


def _schema(kind: str, **more: Any) -> WithJsonSchema:
    return WithJsonSchema({"type": kind, **more})


Text = Annotated[str, BeforeValidator(_line)]
SharedSecret = Annotated[str, BeforeValidator(_shared_secret), _schema("string")]
Port = Annotated[int, BeforeValidator(_port), _schema("integer", minimum=0, maximum=LAST_PORT)]
FixedPort = Annotated[int, BeforeValidator(_fixed_port), _schema("integer", minimum=1, maximum=LAST_PORT)]
Ports = Annotated[PortRange, _schema("string", pattern="^[0-9]+-[0-9]+$")]
Count = Annotated[int, BeforeValidator(_count), _schema("integer", minimum=1, maximum=1024)]
Seconds = Annotated[float, BeforeValidator(_seconds), _schema("number", minimum=0, maximum=_DAY)]
Days = Annotated[float, BeforeValidator(_days), _schema("number", minimum=0, maximum=_MOST_DAYS)]
#: How long somebody is waited for: never no time at all.
Timeout = Annotated[Seconds, AfterValidator(_some_time)]
AbsolutePath = Annotated[Path, BeforeValidator(absolute_path), _schema("string")]
PathOrUrl = Annotated[str, BeforeValidator(_path_or_url), _schema("string")]
Program = Annotated[str, BeforeValidator(_program), _schema("string")]
Password = Annotated[str, BeforeValidator(_password), _schema("string", minLength=8)]
HttpUrl = Annotated[str, BeforeValidator(_http_url), _schema("string", format="uri")]
DatabaseUrl = Annotated[str, BeforeValidator(_database_url), _schema("string", format="uri")]
Host = Annotated[str, BeforeValidator(_host), _schema("string")]
DnsLabel = Annotated[Text, _matching(_DNS_LABEL, "give a name of a-z, 0-9 and '-', of at most 63 characters")]
DnsName = Annotated[Text, _matching(_DNS_NAME, "give a DNS name such as gpustack or gpustack.default.svc")]
Registry = Annotated[
    Text,
    _matching(_REGISTRY, "give a registry without http://, such as docker.io or registry.example.com:5000"),
]
Repository = Annotated[
    Text, _matching(_REPOSITORY, "give a repository without a tag, such as gpustack/gpustack")
]
Image = Annotated[Text, _matching(_IMAGE, "give an image such as registry.example.com/gpustack:1.0")]
HttpMethods = Annotated[
    tuple[Annotated[Text, AfterValidator(_token), AfterValidator(str.upper)], ...], Field(min_length=1)
]
Networks = tuple[Annotated[Text, AfterValidator(_network)], ...]
Origins = Annotated[tuple[Annotated[Text, AfterValidator(_origin)], ...], Field(min_length=1)]
HttpNames = Annotated[tuple[Annotated[Text, AfterValidator(_token)], ...], Field(min_length=1)]
