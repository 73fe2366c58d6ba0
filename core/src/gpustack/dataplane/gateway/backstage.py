"""What is not for models goes to the server, on a port of this machine's own."""

from __future__ import annotations

import json
from collections.abc import Callable

from gpustack.dataplane.gateway.operations import is_inference
from gpustack.dataplane.http import (
    NOT_FOR_SERVERS,
    NOT_FROM_SERVERS,
    Failure,
    Relay,
    Reply,
    Request,
    Upstream,
    openai_error,
    request_head,
    request_line,
)
from gpustack.dataplane.http.upstream import Address
from gpustack.plugin.routing import Timeouts

#: Says, with a secret of this installation, that a request comes through the gateway, and from whom it is.
MARK = b"x-gpustack-gateway"
#: Some frameworks take an underscore for a hyphen.
_SPELT = {MARK, b"x_gpustack_gateway", b"x_gpustack-gateway", b"x-gpustack_gateway"}
_WITHOUT = NOT_FOR_SERVERS | _SPELT
#: Whoever connects while the server starts anew waits in the socket that the supervisor keeps. Lists may be watched for
#: days, with a sign of life every few seconds.
_TIMES = Timeouts(connect=20.0, first_byte=120.0, between=3600.0)


class ServerSide:
    """Passes requests on to the server at ``address``; ``mark`` is the secret that it knows the gateway by."""

    def __init__(
        self,
        upstream: Upstream,
        address: Address,
        mark: bytes,
        note: Callable[[Request, int, Reply], None] | None = None,
    ) -> None:
        self._upstream = upstream
        self._address = address
        self._mark = mark
        self._note = note

    def __call__(self, request: Request, reply: Reply) -> None:
        """Answer with what the server says."""
        target = request.path + (b"?" + request.query if request.query else b"")
        try:
            first = request_line(request.method, target, request.host or b"localhost")
        except ValueError:
            reply.answer(
                400, [(b"content-type", b"application/json")], _body(400, "the request cannot be sent on")
            )
            return
        scheme = b"https" if request.tls else b"http"
        extra = b"%b: %b\r\nx-forwarded-for: %b\r\nx-forwarded-proto: %b\r\n" % (
            MARK,
            self._mark,
            request.peer.encode("latin-1") or b"unknown",
            scheme,
        )
        head = request_head(first, request, len(request.body), without=_WITHOUT, extra=extra)

        def failed(failure: Failure) -> None:
            _unanswered(reply, failure)

        relay = Relay(reply, failed, without=NOT_FROM_SERVERS)
        relay.ask(self._upstream, self._address, head, request.body, _TIMES)


def _unanswered(reply: Reply, failure: Failure) -> None:
    if failure.timed_out and failure.started:
        status, message = 504, "the server of this GPUStack did not answer in time"
    elif failure.started:
        status, message = 502, "the server of this GPUStack ended before it answered; try again"
    else:
        status, message = (
            503,
            "the server of this GPUStack does not answer now; models are served all the same",
        )
    headers = [(b"content-type", b"application/json"), (b"retry-after", b"1")]
    reply.answer(status, headers, _body(status, message))


def refusal_body(request: Request | None, status: int, message: str, code: str) -> bytes:
    """Return an error of the HTTP layer as clients of the API expect it, or as those of models do."""
    if request is None or not request.target or is_inference(request.path):
        return openai_error(request, status, message, code)
    return _body(status, message)


#: As the server names them.
_REASONS = {
    400: "BadRequest",
    408: "RequestTimeout",
    413: "RequestEntityTooLarge",
    502: "BadGateway",
    503: "ServiceUnavailable",
    504: "GatewayTimeout",
}


def _body(status: int, message: str) -> bytes:
    return json.dumps({"code": status, "reason": _REASONS.get(status, "Error"), "message": message}).encode()
