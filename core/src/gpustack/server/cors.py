"""Cross-Origin Resource Sharing around the whole application, for neither of the two APIs knows of the other::

app = Cors(app, CorsPolicy(allow_origins=("https://example.com",), allow_methods=("*",), allow_headers=("*",)))
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from gpustack.dataplane.asgi import Message, Receive, Scope, Send, answer, header
from gpustack.dataplane.cors import CorsPolicy, preflight, shared

App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Cors:
    """An ASGI application around ``app``, which keeps to ``policy``.

    Browsers' questions are answered here, before anybody has to say who they are; other requests pass, and the answers get
    the headers that let the page read them. A request from elsewhere is not refused: without the headers the page
    does not see the answer.
    """

    def __init__(self, app: App, policy: CorsPolicy | None) -> None:
        self._app = app
        #: None is no sharing: all passes as it is. It may be replaced at any time.
        self.policy = policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        policy = self.policy
        if policy is None or scope["type"] != "http":
            await self._app(scope, receive, send)
        elif _is_preflight(scope):
            status, headers, body = preflight(
                policy,
                header(scope, b"origin"),
                header(scope, b"access-control-request-method"),
                header(scope, b"access-control-request-headers"),
            )
            await answer(send, status, headers, body)
        else:
            await self._app(scope, receive, _sharing(policy, header(scope, b"origin"), send))


def _is_preflight(scope: Scope) -> bool:
    if scope["method"] != "OPTIONS":
        return False
    return bool(header(scope, b"origin") and header(scope, b"access-control-request-method"))


def _sharing(policy: CorsPolicy, origin: str, send: Send) -> Send:
    """Return ``send`` with the headers of ``policy`` for a page of ``origin``; empty is none."""

    async def sharing(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": shared(policy, origin, message.get("headers", ()))}
        await send(message)

    return sharing
