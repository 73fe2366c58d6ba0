"""Reads a URL of PostgreSQL."""

from __future__ import annotations

from urllib.parse import parse_qsl, unquote, urlsplit

from gpustack.plugin.databases import DatabaseAddress
from gpustack.plugin.errors import Refused

_SCHEMES = ("postgresql", "postgres")
_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
#: What else may follow the ``?``; the driver reads the files.
_OPTIONS = frozenset(
    {
        "application_name",
        "connect_timeout",
        "host",
        "options",
        "passfile",
        "port",
        "search_path",
        "sslcert",
        "sslcrl",
        "sslkey",
        "sslmode",
        "sslpassword",
        "sslrootcert",
        "ssl_min_protocol_version",
        "ssl_max_protocol_version",
        "target_session_attrs",
    }
)


def parse(text: str) -> DatabaseAddress:
    """Check ``text``; Refused says what is wrong with it, and never shows the password."""
    if "\0" in text or any(c.isspace() for c in text):
        raise Refused("has a space or control character; write it as %20 and the like")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise Refused("is not a URL; it looks like postgresql://user:password@host:5432/name") from error
    if parts.scheme not in _SCHEMES:
        raise Refused(f"starts with {parts.scheme or 'no scheme'!r}; it must start with postgresql://")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    _check_options(options)
    host = unquote(host) or options.get("host", "localhost")
    database = unquote(parts.path.lstrip("/")) or unquote(parts.username or "")
    return DatabaseAddress(
        url=_without(text, "connect_timeout", options),
        where=f"the database {database!r} at {host}:{port or options.get('port', 5432)}",
        user=unquote(parts.username or ""),
        database=database,
        connect_timeout=_seconds(options.get("connect_timeout", "10")),
    )


def _check_options(options: dict[str, str]) -> None:
    for name in options:
        if name not in _OPTIONS:
            raise Refused(f"has the option {name!r}, which is not known")
    mode = options.get("sslmode", "prefer")
    if mode not in _SSL_MODES:
        raise Refused(f"has sslmode={mode!r}; it is one of {', '.join(_SSL_MODES)}")


def _seconds(text: str) -> float:
    if not text.isdigit():
        raise Refused(f"has connect_timeout={text!r}; it is a number of seconds")
    # 0 means "for ever" to libpq; here somebody always waits for the answer.
    return float(text) or 60.0


def _without(text: str, name: str, options: dict[str, str]) -> str:
    """Take one option out of the URL: the driver would hand it to the server, which does not know it."""
    if name not in options:
        return text
    head, _, query = text.partition("?")
    kept = [item for item in query.split("&") if item.partition("=")[0] != name]
    return f"{head}?{'&'.join(kept)}" if kept else head
