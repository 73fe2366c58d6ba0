"""Marks of how a request begins, so that conversations which begin alike go where their beginning is cached.

A mark is a checksum of the first so many bytes of the conversation. There is one for each depth of :data:`DEPTHS`
that the body reaches: two requests that share their first 12,000 bytes share all marks up to that depth. The body is
read as bytes and never decoded. Marks steer, they decide nothing: a collision costs a cache miss.
"""

from __future__ import annotations

from zlib import crc32

#: How many bytes each mark covers. Less than the first is a greeting, not a prefix worth a choice; what comes
#: after the last no longer changes the choice, which bounds the cost of a huge body.
DEPTHS = tuple(
    size for power in range(10, 18) for size in (1 << power, 3 << (power - 1)) if size <= (1 << 17)
)

#: Bytes of a body for one token, roughly, in the languages that models mostly read.
BYTES_PER_TOKEN = 4
_FIRST, _SECOND = DEPTHS[:2]

_MESSAGES, _PROMPT, _INPUT = b'"messages"', b'"prompt"', b'"input"'
#: Keys come before what is long; a body without any of them is not searched to its end.
_SEARCHED = 8 << 10
#: After longer messages than these, a system prompt is not looked for: it would take a tenth of a millisecond or more.
_SEARCHED_FOR_SYSTEM = 512 << 10


def salt(route: str) -> int:
    """Return what :func:`marks` starts from: the same words to two models share nothing. Keep it for each route."""
    return crc32(route.encode("utf-8", "surrogatepass"))


def marks(body: bytes, start: int, *, system_apart: bool = False) -> tuple[int, ...]:
    """Return the marks of a JSON ``body``, shallowest first; empty for one too short to have any.

    ``start`` is the route's :func:`salt`. ``system_apart`` is for Anthropic's form, where the system prompt is a key
    beside the messages and clients write it after them.
    """
    begin = body.find(_MESSAGES, 0, _SEARCHED)
    if begin < 0:
        begin = max(0, body.find(_PROMPT, 0, _SEARCHED))
        begin = begin or max(0, body.find(_INPUT, 0, _SEARCHED))
    if system_apart:
        apart = body.find(b'"system":', 0, _SEARCHED_FOR_SYSTEM)
        if apart > begin:
            most = DEPTHS[-1]
            return _chain(
                memoryview(body[apart : apart + most] + body[begin : min(apart, begin + most)]), 0, start
            )
        if apart >= 0:
            begin = apart
    length = len(body) - begin
    if length < _FIRST:
        return ()
    if length < _SECOND:
        return (crc32(body[begin : begin + _FIRST], start),)
    return _chain(memoryview(body), begin, start)


def session(value: bytes, start: int) -> int:
    """Return the mark of a session header's ``value``; ``start`` is the route's :func:`salt`. Never 0."""
    return crc32(value, crc32(b"session", start)) or 1


def tokens(size: int) -> int:
    """Return about how many tokens ``size`` bytes of a body are."""
    return size // BYTES_PER_TOKEN


def _chain(view: memoryview, begin: int, start: int) -> tuple[int, ...]:
    found = []
    length = len(view) - begin
    before = begin
    for depth in DEPTHS:
        if depth > length:
            break
        end = begin + depth
        start = crc32(view[before:end], start)
        found.append(start)
        before = end
    return tuple(found)
