"""What the choice of an instance can know of a request."""

from __future__ import annotations

from collections.abc import Mapping

from gpustack.dataplane.choosing import Hints, prefix
from gpustack.dataplane.gateway.operations import Operation
from gpustack.dataplane.http import Request

_SESSION, _OTHER_SESSION = b"x-session-id", b"x-gpustack-session"
#: Headers that tell which requests belong together.
SESSIONS = frozenset((_SESSION, _OTHER_SESSION))


def hints_of(
    request: Request, fields: Mapping[bytes, bytes], operation: Operation, salt: int, size: int
) -> Hints:
    """Return the hints of ``request``, whose headers ``fields`` are; routes differ in their ``salt``.

    ``size`` is in bytes of text.
    """
    body = request.body
    session = 0
    if fields and not SESSIONS.isdisjoint(fields):
        value = fields.get(_SESSION, b"").strip(b" \t") or fields.get(_OTHER_SESSION, b"").strip(b" \t")
        if value:
            session = prefix.session(value, salt)
    marks = () if operation.form else prefix.marks(body, salt, system_apart=operation.anthropic)
    return Hints(prefix.tokens(size), marks, session)
