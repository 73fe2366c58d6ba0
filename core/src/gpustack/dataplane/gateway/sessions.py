"""Browsers that are signed in, for pages of ours that ask models: told by a cookie instead of a key."""

from __future__ import annotations

import time
from urllib.parse import urlsplit

from gpustack.dataplane.http import Request
from gpustack.plugin.routing import Principal, RoutingTable, digest, of_session

COOKIE = b"gpustack_session"


def signed_in(table: RoutingTable, request: Request) -> Principal | None:
    """Return who sends this, None where only the server can tell: it may know a session that the table does not.

    A browser sends the cookie along for pages of any site, so none but our own count here; the server refuses others.
    """
    headers = request.headers
    tokens = [
        value.strip(b' \t"')
        for name, line in headers
        if name == b"cookie"
        for key, _, value in (each.partition(b"=") for each in line.split(b";"))
        if key.strip() == COOKIE
    ]
    if len(tokens) != 1 or not tokens[0].isascii() or not _of_our_page(request):
        return None
    found = table.principals.get(of_session(digest(tokens[0].decode("ascii"))))
    return None if found is None or found.expired(time.time()) else found


def _of_our_page(request: Request) -> bool:
    if request.method in (b"GET", b"HEAD"):
        return True
    origin = request.header(b"origin")
    if request.header(b"sec-fetch-site") == b"cross-site":
        return False
    if not origin:
        return True
    try:
        return urlsplit(origin.decode("latin-1")).netloc.lower().encode("latin-1") == request.host.lower()
    except ValueError:
        return False
