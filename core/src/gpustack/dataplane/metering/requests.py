"""What a request's JSON body asks for, and the two changes it may need, made without touching any other byte."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Sequence
from typing import Any

import msgspec

from gpustack.dataplane.errors import ApiError
from gpustack.dataplane.metering.members import MAX_DEPTH, MAX_VALUE, BadJson, Found, Scanner, Wanted

#: Bodies up to this are decoded at once, in 1.5 ms at the very worst; larger ones are looked at in pieces.
AT_ONCE = 1 << 20
#: Errors of bodies up to this are told with line and column, which takes another reading.
_TOLD_EXACTLY = 64 << 10

#: What the APIs call the most tokens that an answer may have.
_MOST_TOKENS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_WANTED = Wanted.of("model", "stream", "stream_options", *_MOST_TOKENS)
_OPTIONS = Wanted.of("include_usage")
_MODEL_VALUE = re.compile(rb'[ \t\r\n]*+:[ \t\r\n]*+("[^"\\]*+(?:\\.[^"\\]*+)*+")', re.DOTALL)
_FIRST_MEMBER = re.compile(rb"[ \t\r\n]*+(\}?)")
_USAGE = b'"include_usage":true'

#: Of the largest number of tokens that anybody means.
_DIGITS = 9

#: Where bytes are replaced, and by what.
Edit = tuple[int, int, bytes]


#: A key as long as "model" that nobody can have sent, since each process has its own.
_PROBE = f"m{secrets.token_hex(2)}"
_PROBE_KEY = f'"{_PROBE}"'.encode()
#: Where most clients write the model, if not at the body's beginning: at its end.
_NEAR = 512


class _Head(msgspec.Struct, gc=False, rename={"probe": _PROBE}):
    probe: Any = None
    model: Any = msgspec.UNSET
    stream: Any = None
    stream_options: msgspec.Raw = msgspec.Raw()
    max_tokens: msgspec.Raw = msgspec.Raw()
    max_completion_tokens: msgspec.Raw = msgspec.Raw()
    max_output_tokens: msgspec.Raw = msgspec.Raw()


class Asked(msgspec.Struct, gc=False):
    """What a body asks for. ``span`` is where the model's name stands, quotes included (in a form: without any)."""

    model: str
    span: tuple[int, int]
    stream: bool = False
    #: The values of ``stream_options``, usually none or one; None when nobody has looked yet.
    options: Sequence[Found] | None = None
    #: The most tokens that the answer may have; 0 when it does not say so as a number.
    max_tokens: int = 0


class BodyReader:
    """Reads a large body as it comes, so that no piece holds the loop for long.

    Each 64 KiB take 0.1 to 0.5 ms as a rule and 8 ms at the very worst; ``feed`` and ``end`` raise ApiError 400.
    """

    __slots__ = ("_scanner",)

    def __init__(self) -> None:
        self._scanner = Scanner(_WANTED)

    def feed(self, piece: bytes) -> None:
        """Take the next bytes of the body."""
        try:
            self._scanner.feed(piece)
        except BadJson as error:
            raise _bad(f"the request body {error}") from None

    def end(self) -> Asked:
        """Return what the body asks for, now that it is whole."""
        try:
            self._scanner.end()
        except BadJson as error:
            raise _empty_or(error) from None
        return _asked(self._scanner.found)


def read(body: bytes) -> Asked:
    """Return what ``body`` asks for. Raises ApiError 400 saying what is wrong and where.

    A body above :data:`AT_ONCE` is given to a :class:`BodyReader` instead, as it comes.
    """
    if len(body) > AT_ONCE:
        return _in_pieces(body)
    if not body.isascii():
        _check_utf8(body)
    key = _model_key(body)
    # One occurrence of the key gets another name: it is the member, and the only one, when the decoder finds that name
    # and no "model" besides, however that might be written.
    probed = body if key < 0 else body[:key] + _PROBE_KEY + body[key + 7 :]
    try:
        head = _decode_head(probed)
    except RecursionError:
        raise _bad("the JSON of the request body is nested too deeply") from None
    except msgspec.ValidationError:
        raise _bad("the request body must be a JSON object") from None
    except (msgspec.DecodeError, ValueError) as error:
        raise _bad(_where(body, error)) from None
    if not isinstance(head.probe, str) or head.model is not msgspec.UNSET:
        return _in_pieces(body)
    model, stream, options = head.probe, head.stream is True, head.stream_options
    if options and stream and _may_be_too_much(body):
        return _in_pieces(body)
    # Options that are there are looked for when they matter.
    most = head.max_tokens or head.max_completion_tokens or head.max_output_tokens
    return Asked(
        model, _span(body, key + 7, model), stream, None if options else (), _count(most) if most else 0
    )


def _count(raw: bytes | msgspec.Raw) -> int:
    """Return the number of tokens that ``raw`` says, 0 when it says something else. It is a hint and no more."""
    digits = bytes(raw)
    return int(digits) if len(digits) <= _DIGITS and digits.isdigit() else 0


def _span(body: bytes, start: int, model: str) -> tuple[int, int]:
    """Return where the value stands that follows the key's end at ``start`` and says ``model``."""
    plain = b':"%b"' % model.encode()
    if body.startswith(plain, start):  # no escape can stand for itself
        return start + 1, start + len(plain)
    value = _MODEL_VALUE.match(body, start)
    assert value is not None
    return value.span(1)


def _may_be_too_much(body: bytes) -> bool:
    """Tell whether the scanner might refuse a valid ``body``, so that it has to be asked now and not in the midst."""
    return len(body) > MAX_VALUE or body.count(b"[") + body.count(b"{") > MAX_DEPTH


def _model_key(body: bytes) -> int:
    if (key := body.find(b'"model"', -_NEAR)) >= 0 or len(body) <= _NEAR:
        return key
    return body.find(b'"model"')


def rename_model(body: bytes, span: tuple[int, int], new: str) -> bytes:
    """Return ``body`` with the name ``new`` in place of the model's value at ``span``."""
    return body[: span[0]] + msgspec.json.encode(new) + body[span[1] :]


def force_usage(body: bytes, asked: Asked | None = None) -> tuple[bytes, bool]:
    """Return ``body`` so that a stream tells its usage, and whether that changed it: the client did not ask for it.

    ``body`` is a valid request to chat or text completions. Without ``stream`` true it stays as it is, since engines
    refuse ``stream_options`` then, and so it does when ``stream_options`` is something that the engine will refuse.
    """
    edits = usage_edits(body, asked)
    return (splice(body, edits), True) if edits else (body, False)


def rewrite(body: bytes, asked: Asked, *, model: str = "", usage: bool = False) -> tuple[bytes, bool]:
    """Make both changes with one copy: ``model`` in place of the name, and usage asked for; whether it had to be."""
    edits = usage_edits(body, asked) if usage else []
    forced = bool(edits)
    if model and model != asked.model:
        edits.append((*asked.span, msgspec.json.encode(model)))
    return (splice(body, edits) if edits else body), forced


def usage_edits(body: bytes, asked: Asked | None = None) -> list[Edit]:
    """Return what :func:`force_usage` changes."""
    if asked is None:
        found = _scan(body)
        stream = found.get("stream", [])
        if not stream or stream[-1].raw != b"true":
            return []
        options: Sequence[Found] = found.get("stream_options", ())
    elif not asked.stream:
        return []
    elif asked.options is None:
        options = _scan(body).get("stream_options", ())
    else:
        options = asked.options
    if not options:
        return [_insertion(body, body.index(b"{") + 1, b'"stream_options":{%b}' % _USAGE)]
    # Of several, an engine reads the first or the last: each gets it.
    return [edit for option in options for edit in _option_edits(option)]


def splice(body: bytes, edits: Sequence[Edit]) -> bytes:
    """Return ``body`` with ``edits`` made, which must not overlap."""
    whole = memoryview(body)
    parts: list[bytes | memoryview] = []
    last = 0
    for start, end, new in sorted(edits) if len(edits) > 1 else edits:
        parts += (whole[last:start], new)
        last = end
    parts.append(whole[last:])
    return b"".join(parts)


def _option_edits(option: Found) -> list[Edit]:
    if option.raw == b"null":
        return [(option.start, option.end, b"{%b}" % _USAGE)]
    if option.raw[:1] != b"{":
        return []
    scanner = Scanner(_OPTIONS)
    scanner.feed(option.raw)
    scanner.end()
    present = scanner.found.get("include_usage", [])
    if not present:
        at, end, new = _insertion(option.raw, 1, _USAGE)
        return [(option.start + at, option.start + end, new)]
    return [
        (option.start + each.start, option.start + each.end, b"true")
        for each in present
        if each.raw != b"true"
    ]


def _insertion(text: bytes, at: int, member: bytes) -> Edit:
    """Insert ``member`` as the first of the object whose bracket is before ``at``."""
    match = _FIRST_MEMBER.match(text, at)
    assert match is not None
    return (at, at, member if match[1] else member + b",")


def _scan(body: bytes) -> dict[str, list[Found]]:
    scanner = Scanner(_WANTED)
    try:
        scanner.feed(body)
        scanner.end()
    except BadJson as error:
        raise _empty_or(error) from None
    return scanner.found


def _in_pieces(body: bytes) -> Asked:
    return _asked(_scan(body))


def _asked(found: dict[str, list[Found]]) -> Asked:
    models = found.get("model", [])
    if len(models) > 1:
        # The engine might read another one than we do.
        raise _bad('the request body has the key "model" more than once', param="model")
    if not models or models[0].raw == b"null":
        raise _lacking()
    try:
        model = msgspec.json.decode(models[0].raw)
    except (msgspec.DecodeError, ValueError, RecursionError):
        model = None
    if not isinstance(model, str):
        raise _no_string()
    stream = found.get("stream", [])
    return Asked(
        model,
        (models[0].start, models[0].end),
        bool(stream) and stream[-1].raw == b"true",
        found.get("stream_options", ()),
        next((_count(found[name][-1].raw) for name in _MOST_TOKENS if name in found), 0),
    )


_decode_head = msgspec.json.Decoder(_Head).decode


def _check_utf8(body: bytes) -> None:
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise _bad(f"the request body is not valid UTF-8 at byte {error.start}") from None


def _where(body: bytes, found: Exception) -> str:
    if not body.strip():
        return 'the request body is empty; send a JSON object with "model"'
    if body.startswith(b"\xef\xbb\xbf"):
        return "the request body begins with a byte order mark; send plain UTF-8"
    if len(body) <= _TOLD_EXACTLY:
        try:
            json.loads(body)
        except json.JSONDecodeError as error:
            return f"the request body is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        except (RecursionError, ValueError):
            pass
    return f"the request body is not valid JSON: {str(found).removeprefix('JSON is malformed: ')}"


def _empty_or(error: BadJson) -> ApiError:
    if str(error) == "is empty":
        return _bad('the request body is empty; send a JSON object with "model"')
    return _bad(f"the request body {error}")


def _lacking() -> ApiError:
    return _bad('the request body lacks "model", the name of the model to ask', param="model")


def _no_string() -> ApiError:
    return _bad('"model" must be a string', param="model")


def _bad(message: str, *, param: str | None = None) -> ApiError:
    return ApiError(400, message, code="invalid_request", param=param)
