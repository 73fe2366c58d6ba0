"""Streams of server-sent events: their usage read, and taken out again where the client did not ask for it.

What real engines send when ``stream_options.include_usage`` is asked for (llama.cpp of October 2026, vLLM 0.4 to 0.11):
one more chunk before ``[DONE]`` with ``"choices": []`` and the usage. That chunk is removed. Two members move onto it
from the chunk before, the one with the ``finish_reason``: llama.cpp's ``timings`` and vLLM's ``system_fingerprint``.
They are put back, so that the client gets what it would have got. Nothing else depends on the option:
``"usage": null`` is in all chunks of vLLM's text completions and of SGLang either way and therefore stays, and
llama.cpp's text completions always tell usage in their last chunk, which has choices and stays as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec

from gpustack.dataplane.metering.usage import Clock, Tally, Usage, settle

#: An event longer than this holds no usage that we read, and is not held back.
_LONGEST = 1 << 20
#: Until so many chunks have come, each is looked at for text: the first ones may tell nothing but a role.
_FIRST = 3
#: Times between pieces that are kept before they are told, together.
_GAPS = 32

_EVENT_END = re.compile(rb"\n\r?\n|\r\r")
_DATA = re.compile(rb"(?:^|[\r\n])data:[ ]?([^\r\n]*)")
_TEXTLESS = frozenset({b"", b"null", b'""', b"[]", b"{}"})
_TYPED = (b"delta\n", b"delta\r")
_LAST_TYPES = frozenset({"message_delta", "response.completed", "response.incomplete", "response.failed"})
#: What moves onto the chunk with the usage.
_MOVING = ("timings", "system_fingerprint")


class _Chunk(msgspec.Struct):
    type: Any = None
    choices: msgspec.Raw = msgspec.Raw()
    usage: msgspec.Raw = msgspec.Raw()
    message: msgspec.Raw = msgspec.Raw()
    response: msgspec.Raw = msgspec.Raw()
    timings: msgspec.Raw = msgspec.Raw()
    system_fingerprint: msgspec.Raw = msgspec.Raw()


class _Delta(msgspec.Struct):
    content: msgspec.Raw = msgspec.Raw()
    reasoning_content: msgspec.Raw = msgspec.Raw()
    reasoning: msgspec.Raw = msgspec.Raw()
    tool_calls: msgspec.Raw = msgspec.Raw()


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    text: msgspec.Raw = msgspec.Raw()


class _Holder(msgspec.Struct):
    usage: msgspec.Raw = msgspec.Raw()


_chunk = msgspec.json.Decoder(_Chunk).decode
_choices = msgspec.json.Decoder(list[_Choice]).decode
_holder = msgspec.json.Decoder(_Holder).decode
_UNREADABLE = (msgspec.DecodeError, ValueError, RecursionError)


class StreamReader:
    """Follows one stream. Without ``forced`` nothing is held back or removed.

    With it, an event goes on when it is whole, the one with the finish reason when the next one has come. A client that
    leaves, or an engine that dies, is counted by the chunks that came: ``usage`` is an estimate then.
    """

    __slots__ = (
        "_between",
        "_clock",
        "_estimate",
        "_final",
        "_forced",
        "_gaps",
        "_held",
        "_left",
        "_passing",
        "_prompt_bytes",
        "_typed",
        "chunks",
        "first_at",
        "last_at",
        "tally",
    )

    def __init__(
        self,
        prompt_bytes: int,
        *,
        clock: Clock,
        forced: bool = False,
        estimate: bool = True,
        between: Callable[[float], None] | None = None,
    ) -> None:
        self._prompt_bytes = prompt_bytes
        self._clock = clock
        self._forced = forced
        self._estimate = estimate
        self._between = between
        self._gaps: list[float] = []
        #: What the engine tells.
        self.tally = Tally()
        #: Whether the engine has told its last word on usage.
        self._final = False
        self._typed = False
        #: The beginning of an event, and whether it is too long to be kept.
        self._left = b""
        self._passing = False
        self._held = b""
        self.chunks = 0
        self.first_at: float | None = None
        self.last_at: float | None = None

    def feed(self, piece: bytes) -> bytes:
        """Take the next bytes, cut anywhere; return what the client gets now, which may be nothing."""
        now = self._clock()
        last = self.last_at
        if last is None:
            self.first_at = now
        elif self._between is not None:
            self._gaps.append(now - last)
            if len(self._gaps) >= _GAPS:
                self.tell_gaps()
        self.last_at = now
        if (
            self.chunks >= _FIRST
            and not self._left
            and not self._held
            and piece[-2:] == b"\n\n"
            and not self._passing
            and self._nothing_special(piece)
        ):
            if self._typed:
                self.chunks += piece.count(_TYPED[0])
            else:
                self.chunks += piece.count(b"\n\n")
            return piece
        return self._look(piece)

    def passes(self, chunk: bytes, start: int, now: float) -> bool:
        """Take a whole chunk of the transfer coding, whose data begin at ``start`` and end with an event.

        False, and nothing else, when :meth:`feed` has to look at the data; else they have come ``now`` and the client
        gets them as they are: nearly all of a stream does.
        """
        if (
            self.chunks < _FIRST
            or self._left
            or self._held
            or self._passing
            or (b'"usage"' in chunk and chunk.count(b'"usage"') != chunk.count(b'"usage":null'))
        ):
            return False
        if self._typed:
            if b"message_" in chunk:
                return False
            self.chunks += chunk.count(_TYPED[0], start)
        else:
            if (
                b'"finish_reason":"' in chunk
                or b'"finish_reason": "' in chunk
                or b"[DONE]" in chunk
                or b"\n:" in chunk
            ):
                return False
            self.chunks += chunk.count(b"\n\n", start)
        last = self.last_at
        if last is not None and self._between is not None:
            gaps = self._gaps
            gaps.append(now - last)
            if len(gaps) >= _GAPS:
                self.tell_gaps()
        self.last_at = now
        return True

    def tell_gaps(self) -> None:
        """Tell the times between pieces that nobody was told of yet; once more when the stream is over."""
        if self._between is not None:
            for gap in self._gaps:
                self._between(gap)
            self._gaps.clear()

    def end(self) -> bytes:
        """Return what was held back."""
        rest, self._held, self._left = self._held + (self._left if self._forced else b""), b"", b""
        return rest

    @property
    def usage(self) -> Usage:
        """What the engine has told; for what it has not told, what was seen."""
        return settle(
            self.tally,
            prompt_bytes=self._prompt_bytes,
            chunks=self.chunks,
            final=self._final,
            estimate=self._estimate,
        )

    def _nothing_special(self, piece: bytes) -> bool:
        if b'"usage"' in piece and piece.count(b'"usage"') != piece.count(b'"usage":null'):
            return False
        if self._typed:
            return b"message_" not in piece
        return (
            b'"finish_reason":"' not in piece
            and b'"finish_reason": "' not in piece
            and b"[DONE]" not in piece
            and b"\n:" not in piece
        )

    def _look(self, piece: bytes) -> bytes:
        whole = self._left + piece if self._left else piece
        before = max(0, len(self._left) - 3)
        parts: list[bytes] = []
        position = 0
        for end in _EVENT_END.finditer(whole, before):
            event = whole[position : end.end()]
            position = end.end()
            if self._passing:
                self._passing = False
                self.chunks += 1
                parts.append(event)
            elif self._event(event):
                if self._held:
                    parts.append(self._held)
                    self._held = b""
                if self._forced and b'"finish_reason"' in event and _finishes(event):
                    self._held = event
                else:
                    parts.append(event)
        self._left = whole[position:]
        if self._passing or len(self._left) > _LONGEST:
            self._passing = True
            parts.append(self._left[:-3])
            self._left = self._left[-3:]
        if not self._forced:
            return piece
        return b"".join(parts)

    def _event(self, event: bytes) -> bool:
        """Take one whole event; tell whether the client is to get it."""
        found = _DATA.findall(event)
        if not found:
            return True
        data = found[0] if len(found) == 1 else b"\n".join(found)
        if data.startswith(b"[DONE]"):
            return True
        if event.startswith(b"event:"):
            self._typed = True
        try:
            chunk = _chunk(data)
        except _UNREADABLE:
            self.chunks += 1
            return True
        if self._typed:
            self._take_typed(chunk)
            return True
        return self._take_chunk(chunk, event)

    def _take_typed(self, chunk: _Chunk) -> None:
        """Anthropic's events, and those of OpenAI's responses."""
        kind = chunk.type if isinstance(chunk.type, str) else ""
        told = bool(chunk.usage) and self.tally.take_usage(chunk.usage)
        for holder in (chunk.message, chunk.response):
            if holder:
                try:
                    usage = _holder(holder).usage
                except _UNREADABLE:
                    continue
                told |= bool(usage) and self.tally.take_usage(usage)
        if kind in _LAST_TYPES:
            self._final |= told
        elif kind.endswith("delta"):
            self.chunks += 1

    def _take_chunk(self, chunk: _Chunk, event: bytes) -> bool:
        """Chunks of OpenAI's completions."""
        told = bool(chunk.usage) and self.tally.take_usage(chunk.usage)
        if chunk.timings and not told:
            self.tally.take_timings(chunk.timings)
        if bytes(chunk.choices).replace(b" ", b"") == b"[]":
            if not told:
                return True
            self._final = True
            if not self._forced:
                return True
            if self._held:
                self._held = _with_moved(self._held, chunk)
            return False
        if _has_text(chunk.choices):
            self.chunks += 1
        if told and _finishes(event):
            self._final = True
        return True


def _finishes(event: bytes) -> bool:
    return b'"finish_reason":"' in event or b'"finish_reason": "' in event


def _has_text(choices: msgspec.Raw) -> bool:
    if not choices:
        return False
    try:
        found = _choices(choices)
    except _UNREADABLE:
        return True
    for choice in found:
        if bytes(choice.text) not in _TEXTLESS:
            return True
        if (delta := choice.delta) is not None and not (
            bytes(delta.content) in _TEXTLESS
            and bytes(delta.reasoning_content) in _TEXTLESS
            and bytes(delta.reasoning) in _TEXTLESS
            and bytes(delta.tool_calls) in _TEXTLESS
        ):
            return True
    return False


def _with_moved(event: bytes, usage_chunk: _Chunk) -> bytes:
    """Give the last chunk back what an engine puts onto the chunk with the usage instead."""
    found = list(_DATA.finditer(event))
    if len(found) != 1:
        return event
    try:
        present = _chunk(found[0][1])
    except _UNREADABLE:
        return event
    end = found[0].start(1) + found[0][1].rindex(b"}")
    moved = b"".join(
        b',"%b":%b' % (name.encode(), bytes(getattr(usage_chunk, name)))
        for name in _MOVING
        if getattr(usage_chunk, name) and not getattr(present, name)
    )
    return event[:end] + moved + event[end:]
