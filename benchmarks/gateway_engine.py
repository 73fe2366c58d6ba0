"""An engine that costs next to nothing: ``gateway_engine.py PORT`` answers chats, whole or as a stream.

A stream has :data:`CHUNKS` chunks, one each :data:`PACE` seconds, and tells its usage when asked for it.
"""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import uvloop

CHUNKS, PACE = 150, 0.02

_BODY = (
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,'
    b'"message":{"role":"assistant","content":"' + b"hello " * 50 + b'"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":250,"completion_tokens":50,"total_tokens":300}}'
)
_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
    len(_BODY),
    _BODY,
)
_STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def _event(choices: bytes, more: bytes = b"") -> bytes:
    data = (
        b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1764200000,"model":"model",'
        b'"choices":[%b]%b}\n\n' % (choices, more)
    )
    return b"%x\r\n%b\r\n" % (len(data), data)


_CHUNK = _event(b'{"index":0,"delta":{"content":" hello"},"logprobs":null,"finish_reason":null}')
_LAST = _event(b'{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}')
_USAGE = _event(b"", b',"usage":{"prompt_tokens":250,"completion_tokens":200,"total_tokens":450}')
_END = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


class _Client(asyncio.Protocol):
    """One connection. Bodies are counted, not kept."""

    def __init__(self) -> None:
        self._head = b""
        self._left = 0
        self._streams = self._tells = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are no subclasses of it

    def data_received(self, data: bytes) -> None:
        if self._left:
            self._left -= len(data)
        else:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self._head[:end].lower()
            at = head.index(b"content-length:") + 15
            stop = head.find(b"\r\n", at)
            body = self._head[end + 4 :]
            self._left = int(head[at : stop if stop > 0 else None]) - len(body)
            self._streams = b'"stream":true' in body
            self._tells = b'"include_usage":true' in body
            self._head = b""
        if self._left <= 0:
            self._left = 0
            self._answer()

    def _answer(self) -> None:
        if not self._streams:
            self._transport.write(_ANSWER)
            return
        self._transport.write(_STREAM)
        asyncio.get_running_loop().call_later(PACE, self._chunk, CHUNKS, self._tells)

    def _chunk(self, left: int, tells: bool) -> None:
        if self._transport.is_closing():
            return
        if left:
            self._transport.write(_CHUNK)
            asyncio.get_running_loop().call_later(PACE, self._chunk, left - 1, tells)
        else:
            self._transport.write(_LAST + (_USAGE if tells else b"") + _END)


async def _main() -> None:
    await asyncio.get_running_loop().create_server(_Client, "127.0.0.1", int(sys.argv[1]), backlog=4096)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(_main())
