"""How many tokens an answer took, in whatever words an engine tells it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

Clock = Callable[[], float]

#: Bytes of a prompt's text for one token, where nothing better is known.
BYTES_PER_TOKEN = 4
#: No answer has so many tokens.
MOST = 1 << 40


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Counts in tokens. ``cached`` is the part of ``prompt`` that the engine had in its cache.

    ``estimated`` says that at least one count is the gateway's own, because the engine told none.
    """

    prompt: int = 0
    cached: int = 0
    completion: int = 0
    estimated: bool = False


class Counts(msgspec.Struct):
    """A usage object in the words of OpenAI's two APIs and of Anthropic's. Anything may be missing or wrong."""

    prompt_tokens: Any = None
    completion_tokens: Any = None
    total_tokens: Any = None
    prompt_tokens_details: Any = None
    input_tokens: Any = None
    output_tokens: Any = None
    input_tokens_details: Any = None
    cache_read_input_tokens: Any = None
    cache_creation_input_tokens: Any = None


class Timings(msgspec.Struct):
    """What llama.cpp tells of every answer: tokens taken from the cache, read and written."""

    cache_n: Any = None
    prompt_n: Any = None
    predicted_n: Any = None


_counts = msgspec.json.Decoder(Counts).decode
_timings = msgspec.json.Decoder(Timings).decode


class Tally:
    """Collects what an answer tells, once or several times; the highest count of each kind is the right one.

    ``prompt``, ``cached`` and ``completion`` are None as long as nothing told them; ``heard`` changes when they do.
    """

    __slots__ = ("cached", "completion", "heard", "prompt")

    def __init__(self) -> None:
        self.heard = 0
        self.prompt: int | None = None
        self.cached: int | None = None
        self.completion: int | None = None

    def take_usage(self, raw: bytes | msgspec.Raw) -> bool:
        """Take a usage object as it is written; False, and nothing else, when it is none."""
        try:
            said = _counts(raw)
        except (msgspec.DecodeError, ValueError, RecursionError):
            return False
        prompt = _count(said.prompt_tokens)
        completion = _count(said.completion_tokens)
        cached = _detail(said.prompt_tokens_details)
        if prompt is None and (prompt := _count(said.input_tokens)) is not None:
            cached = _detail(said.input_tokens_details)
            if (read := _count(said.cache_read_input_tokens)) is not None:
                # Anthropic counts apart what the cache gave and what it took.
                prompt += read + (_count(said.cache_creation_input_tokens) or 0)
                cached = read
        if completion is None:
            completion = _count(said.output_tokens)
        if prompt is None and completion is None:
            # Rerankers tell nothing but a total.
            prompt = _count(said.total_tokens)
        self._note(prompt, cached, completion)
        return not (prompt is None and completion is None)

    def take_timings(self, raw: bytes | msgspec.Raw) -> None:
        """Take llama.cpp's timings, which it tells also where it tells no usage."""
        try:
            said = _timings(raw)
        except (msgspec.DecodeError, ValueError, RecursionError):
            return
        cached, read = _count(said.cache_n), _count(said.prompt_n)
        self._note(None if read is None else read + (cached or 0), cached, _count(said.predicted_n))

    def _note(self, prompt: int | None, cached: int | None, completion: int | None) -> None:
        self.heard += 1
        self.prompt = _higher(self.prompt, prompt)
        self.cached = _higher(self.cached, cached)
        self.completion = _higher(self.completion, completion)


def _count(value: Any) -> int | None:
    # A number that no answer can have is none: it would be billed.
    return value if type(value) is int and 0 <= value < MOST else None


def _detail(details: Any) -> int | None:
    return _count(details.get("cached_tokens")) if isinstance(details, dict) else None


def _higher(before: int | None, now: int | None) -> int | None:
    if now is None:
        return before
    return now if before is None or now > before else before


def settle(tally: Tally, *, prompt_bytes: int, chunks: int, final: bool, estimate: bool) -> Usage:
    """Return the usage of an answer from what it told and what was seen of it."""
    prompt, cached, completion = tally.prompt or 0, tally.cached or 0, tally.completion or 0
    estimated = False
    if estimate and not final:
        if tally.prompt is None:
            prompt, estimated = -(-prompt_bytes // BYTES_PER_TOKEN), True
        if tally.completion is None or chunks > tally.completion:
            estimated |= bool(chunks)
            completion = chunks
    return Usage(prompt, cached, completion, estimated)
