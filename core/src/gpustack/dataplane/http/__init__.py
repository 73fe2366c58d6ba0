"""HTTP/1.1 on both sides of a gateway, on one event loop, without a task for a request.

Clients' side: an :class:`HttpServer` hands each :class:`Request` to a :class:`Service`, which answers by the
:class:`Reply`. Engines' side: an :class:`Upstream` sends requests over pooled connections and gives the answer to
a :class:`Sink`. Everything is a callback on the event loop:

    class Echo:
        def begin(self, request):
            return BodyPlan()

        def handle(self, request, reply):
            reply.answer(200, [(b"content-type", b"text/plain")], request.body)

    server = HttpServer(Echo())
    server.start()
    await asyncio.get_running_loop().create_server(server.protocol, "127.0.0.1", 8080)

A request is never sent on as it came: :func:`request_head` writes it anew from what was understood. An answer can
pass through as it came, after it has been parsed.
"""

from gpustack.dataplane.http.heads import (
    HOP_BY_HOP,
    NOT_FOR_CLIENTS,
    NOT_FOR_ENGINES,
    NOT_FOR_SERVERS,
    NOT_FROM_SERVERS,
    host_header,
    request_head,
    request_line,
)
from gpustack.dataplane.http.known import KnownAnswer, KnownRequest
from gpustack.dataplane.http.limits import Limits
from gpustack.dataplane.http.relay import Relay
from gpustack.dataplane.http.reply import Reply
from gpustack.dataplane.http.request import BodyPlan, Header, Headers, Refusal, Request, Service, openai_error
from gpustack.dataplane.http.server import HttpServer
from gpustack.dataplane.http.server_protocol import ServerProtocol
from gpustack.dataplane.http.upstream import Address, Exchange, Failure, Sink, Stage, Upstream

__all__ = [
    "HOP_BY_HOP",
    "NOT_FOR_CLIENTS",
    "NOT_FOR_ENGINES",
    "NOT_FOR_SERVERS",
    "NOT_FROM_SERVERS",
    "Address",
    "BodyPlan",
    "Exchange",
    "Failure",
    "Header",
    "Headers",
    "HttpServer",
    "KnownAnswer",
    "KnownRequest",
    "Limits",
    "Refusal",
    "Relay",
    "Reply",
    "Request",
    "ServerProtocol",
    "Service",
    "Sink",
    "Stage",
    "Upstream",
    "host_header",
    "openai_error",
    "request_head",
    "request_line",
]
