"""Which headers go from one hop to the next, and the one by which a door speaks for itself."""

from __future__ import annotations

from collections.abc import Iterable

Header = tuple[bytes, bytes]

_HOP_BY_HOP = {
    b"connection",
    b"keep-alive",
    b"proxy-authenticate",
    b"proxy-authorization",
    b"proxy-connection",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
}
#: Written anew, or ours alone: credentials never reach an engine.
_NOT_FOR_ENGINES = _HOP_BY_HOP | {
    b"authorization",
    b"content-length",
    b"cookie",
    b"expect",
    b"host",
    b"x-api-key",
    b"x-request-id",
}
#: An answer with this header is a door's own and no engine's; it says how far the request came.
DOOR_SAYS = b"x-gpustack-door"
#: The engine has seen nothing of the request; the engine ended before it answered.
UNREACHED, DIED = b"unreached", b"died"
#: An engine neither sets cookies at our address, nor opens it to other origins, nor speaks for a door.
_NOT_FOR_CLIENTS = _HOP_BY_HOP | {b"date", b"server", b"set-cookie", b"x-request-id", DOOR_SAYS}


def for_engines(headers: Iterable[Header]) -> list[Header]:
    """Return those of a client's request headers that an engine gets. Names are lower case."""
    given = list(headers)
    named = _named_by_connection(given)
    return [(name, value) for name, value in given if name not in _NOT_FOR_ENGINES and name not in named]


def for_clients(headers: Iterable[Header]) -> list[Header]:
    """Return those of an engine's answer headers that a client gets."""
    return [
        (name, value)
        for name, value in headers
        if name not in _NOT_FOR_CLIENTS and not name.startswith(b"access-control-")
    ]


def _named_by_connection(headers: Iterable[Header]) -> set[bytes]:
    """Return the headers that ``Connection`` declares to be for one hop only."""
    values = [value for name, value in headers if name == b"connection"]
    return {token.strip().lower() for value in values for token in value.split(b",")}
