"""Cross-Origin Resource Sharing: which other web pages may have a browser speak to us, and read the answers.

policy = CorsPolicy(allow_origins=("https://example.com",), allow_methods=("*",), allow_headers=("*",))
preflight(policy, origin, method, listed)       # the answer to a browser's question
shared(policy, origin, headers)                 # the headers of an answer, with what lets the page read it
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

Headers = list[tuple[bytes, bytes]]

_ALL = "*"

#: Request headers that a page may send in any case, as the Fetch standard has it.
_SAFE_HEADERS = ("accept", "accept-language", "content-language", "content-type")
#: Response headers that a page may read beside those that it may read in any case.
_EXPOSED = ("Retry-After", "X-Request-Id")
#: Seconds for which a browser need not ask again.
_MAX_AGE = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class CorsPolicy:
    """What pages of other origins may do. ``*`` stands for all origins, methods or headers."""

    #: As browsers write them: ``https://example.com``, with a port that is not the scheme's own, without a path.
    allow_origins: tuple[str, ...]
    allow_methods: tuple[str, ...]
    allow_headers: tuple[str, ...]
    #: Whether a page may have the browser's cookies sent. With ``*`` every page may act as whoever is signed in.
    allow_credentials: bool = False

    @property
    def varies(self) -> bool:
        """Whether answers differ from origin to origin: a browser takes no ``*`` where there are credentials."""
        return self.allow_credentials or _ALL not in self.allow_origins

    def allows_origin(self, origin: str) -> bool:
        return _ALL in self.allow_origins or _is_among(origin, self.allow_origins)

    def allows_method(self, method: str) -> bool:
        return _ALL in self.allow_methods or method in self.allow_methods

    def allows_headers(self, names: Iterable[str]) -> bool:
        if _ALL in self.allow_headers:
            return True
        return all(_is_among(name, (*_SAFE_HEADERS, *self.allow_headers)) for name in names)


def preflight(policy: CorsPolicy, origin: str, method: str, listed: str) -> tuple[int, Headers, bytes]:
    """Return status, headers and body for a browser's question. ``listed`` are the headers that the page wants to send."""
    names = [name for part in listed.split(",") if (name := part.strip())]
    refused = [
        what
        for what, allowed in (
            ("origin", policy.allows_origin(origin)),
            ("method", policy.allows_method(method)),
            ("headers", policy.allows_headers(names)),
        )
        if not allowed
    ]
    vary = [(b"vary", b"Origin")] if policy.varies else []
    if refused:
        line = f"not allowed from another origin: {', '.join(refused)}\n"
        return 400, [(b"content-type", b"text/plain; charset=utf-8"), *vary], line.encode()
    # A list of all that is allowed would not name what is allowed by ``*``.
    methods = [method] if _ALL in policy.allow_methods else policy.allow_methods
    headers = names if _ALL in policy.allow_headers else [*_SAFE_HEADERS, *policy.allow_headers]
    allowed = [
        (b"access-control-allow-methods", _joined(methods)),
        (b"access-control-max-age", str(_MAX_AGE).encode()),
        *([(b"access-control-allow-headers", _joined(headers))] if headers else []),
    ]
    return 200, [*_granted(policy, origin), *allowed, *vary], b""


def granted(policy: CorsPolicy, origin: str) -> Headers:
    """Return what an answer needs so that a page of ``origin`` may read it; empty when it may not, or is none."""
    if not origin or not policy.allows_origin(origin):
        return []
    return [*_granted(policy, origin), (b"access-control-expose-headers", _joined(_EXPOSED))]


def shared(policy: CorsPolicy, origin: str, headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Return the headers of an answer as a page of ``origin`` is to have them."""
    found = [*_without_sharing(headers), *granted(policy, origin)]
    return _varying(found) if policy.varies else found


def _granted(policy: CorsPolicy, origin: str) -> Headers:
    headers = [(b"access-control-allow-origin", origin.encode("latin-1") if policy.varies else b"*")]
    if policy.allow_credentials:
        headers.append((b"access-control-allow-credentials", b"true"))
    return headers


def _without_sharing(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Return ``headers`` without those of engines that have a policy of their own."""
    return [(name, value) for name, value in headers if not name.lower().startswith(b"access-control-")]


def _varying(headers: Headers) -> Headers:
    """Return ``headers`` with ``Origin`` among what the answer varies with."""
    values = [value for name, value in headers if name.lower() == b"vary"]
    named = {each.strip().lower() for value in values for each in value.split(b",")}
    if named & {b"*", b"origin"}:
        return headers
    others = [(name, value) for name, value in headers if name.lower() != b"vary"]
    return [*others, (b"vary", b", ".join([*values, b"Origin"]))]


def _is_among(name: str, names: Iterable[str]) -> bool:
    return name.lower() in (each.lower() for each in names)


def _joined(names: Iterable[str]) -> bytes:
    return ", ".join(names).encode("latin-1")
