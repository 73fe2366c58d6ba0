"""JSON bodies of requests: what is found in them is what a decoder finds, and edits change nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from gpustack.dataplane.choosing import prefix
from gpustack.dataplane.errors import ApiError
from gpustack.dataplane.metering import requests
from gpustack.dataplane.metering.members import MAX_DEPTH, MAX_VALUE, BadJson, Found, Scanner, Wanted
from gpustack.dataplane.metering.requests import Asked, BodyReader
from support.fuzzing.cuts import ways

WORDS = (
    *(b'"model"', b'"mod\\u0065l"', b'"\\u006Dodel"', b'"stream"', b'"stream_options"', b'"include_usage"', b":true"),
    *(b":false", b":null", b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b'\\"', b"\\\\", b"\\ud83d\\ude00", b"\\ud800"),
    *(b"\xef\xbb\xbf", b"\xc3\xa9", b"NaN", b"1e5", b"-0", b'{"model":"m"', b'"model":"m"', b"\t", b"\n", b"\\u0000"),
)  # fmt: skip
_NAMES = ("model", "stream", "stream_options", "usage")
_WANTED = Wanted.of(*_NAMES)
#: For what is not as in the document.
_NOTHING = object()


def seeds() -> Iterable[bytes]:
    """Return bodies as clients write them, and some that nobody should."""
    chat: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": 'say "model": {"é😀\\'}]}
    yield json.dumps(chat).encode()
    yield json.dumps({**chat, "stream": True}, ensure_ascii=False, indent=1).encode()
    for options in (
        None,
        {},
        {"include_usage": False},
        {"include_usage": True},
        {"a": {"include_usage": 1}},
        3,
    ):
        yield json.dumps({"stream_options": options, "stream": True, "model": "m", "n": 1.5e3}).encode()
    yield json.dumps({"pad": "x" * 600, **chat, "more": "y" * 600}).encode()
    yield b'{"mod\\u0065l":"m","a":{"model":1},"b":["model",{"model":2}]}'
    yield b'{"model":"a","model":"b"}'
    yield b'{"model":"a","mod\\u0065l":"b","stream":true,"str\\u0065am":false}'
    yield b'{"stream":true,"stream_options":null,"stream_options":{"include_usage":0},"model":"\\ud83d\\ude00"}'
    yield b' {"model" : "m" , "stream" : true } '
    yield b'{"model":"m",}'
    yield b'{"model":"m"} x'
    yield b'{"model":"\\ud800"}'
    yield b'{"model":"m","a":NaN}'
    yield b'{"a":"model","b":"\\"model\\":","model":"m"}'
    yield b'{"model":null}'
    yield b"[]"
    yield b'{"model":"m","a":' + b"[" * 600 + b"]" * 600 + b"}"
    yield b'{"model":"m","stream":true,"stream_options":{},"a":' + b"[" * 600 + b"]" * 600 + b"}"


def run(data: bytes) -> None:
    """Read ``data`` at once and in pieces."""
    pairs = pairs_of(data)
    _scan(data, pairs)
    for apart in (False, True):
        prefix.marks(data, 1, system_apart=apart)
    asked = _attempt(lambda: requests.read(data))
    cut = _attempt(lambda: _in_pieces([data]))
    for pieces in ways(data):
        assert _attempt(lambda pieces=pieces: _in_pieces(pieces)) == cut, (
            "another cut is read as something else"
        )  # type: ignore[misc]
    models = [value for name, value in pairs if name == "model"] if pairs is not None else []
    if len(models) == 1 and isinstance(models[0], str):
        assert pairs is not None
        if not _too_much(pairs, data):
            assert isinstance(asked, Asked), f"a valid body is refused: {asked}"
        if isinstance(asked, Asked):
            _agrees(data, pairs, asked, models[0])
        if isinstance(cut, Asked):
            _agrees(data, pairs, cut, models[0])
    else:
        assert not isinstance(asked, Asked), "a body is taken that is invalid, or names no model, or several"
        if pairs is not None:
            assert not isinstance(cut, Asked), "a body is taken in pieces that names no model, or several"


def pairs_of(data: bytes) -> list[tuple[str, Any]] | None:
    """Return the members of a valid object, repeated ones too; None for what is no JSON that everybody takes.

    Beside invalid documents these are half surrogate pairs, and numbers beyond what a double can hold.
    """
    try:
        text = data.decode()
        found: list[tuple[str, Any]] = json.loads(
            text, object_pairs_hook=_Pairs, parse_constant=_refuse, parse_float=_float, parse_int=_int
        )
        json.dumps(found, ensure_ascii=False).encode()
        msgspec.json.decode(data)
    except (ValueError, RecursionError):
        return None
    return list(found) if isinstance(found, _Pairs) else None


class _Pairs(list[tuple[str, Any]]):
    """The members of one object, in order."""


def _refuse(word: str) -> Any:
    raise ValueError(word)


def _float(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(text)
    return number


def _int(text: str) -> object:
    # Digits count, not what they make: Python takes only so many.
    return int(text) if len(text) < 300 else _refuse(text)


def _depth(data: bytes) -> int:
    depth = most = 0
    inside = escaped = False
    for byte in data:
        if inside:
            inside = escaped or byte != 0x22
            escaped = not escaped and byte == 0x5C
        elif byte == 0x22:
            inside = True
        elif byte in b"{[":
            depth += 1
            most = max(most, depth)
        elif byte in b"}]":
            depth -= 1
    return most


def _too_much(pairs: list[tuple[str, Any]], data: bytes) -> bool:
    """Tell whether a valid body may be refused all the same."""
    return (len(data) > MAX_VALUE and any(name in _NAMES for name, _ in pairs)) or _depth(data) > MAX_DEPTH


def _in_pieces(pieces: Sequence[bytes]) -> Asked:
    reader = BodyReader()
    for piece in pieces:
        reader.feed(piece)
    return reader.end()


def _attempt(reading: Callable[[], Asked]) -> Asked | str:
    try:
        return reading()
    except ApiError as error:
        if error.status != 400 or "\n" in error.message:
            raise AssertionError("an error that is not clear") from error
        # Which fault is told of several depends on how far one has looked.
        return "refused"


def _agrees(data: bytes, pairs: list[tuple[str, Any]], asked: Asked, model: str) -> None:
    assert asked.model == model
    assert json.loads(data[slice(*asked.span)]) == model
    streams = [value for name, value in pairs if name == "stream"]
    assert asked.stream is (bool(streams) and streams[-1] is True)
    new = 'new "é"'
    renamed = requests.rename_model(data, asked.span, new)
    assert pairs_of(renamed) == [(name, new if name == "model" else value) for name, value in pairs]
    usage, forced = requests.force_usage(data, asked)
    if asked.stream:
        _usage_asked(pairs, usage, forced)
    else:
        assert (usage, forced) == (data, False)
    if not _too_much(pairs, data):
        assert requests.force_usage(data) == (usage, forced)
    assert pairs_of(requests.rewrite(data, asked, model=new, usage=True)[0]) == [
        (name, new if name == "model" else value) for name, value in pairs_of(usage) or []
    ]


def _usage_asked(before: list[tuple[str, Any]], data: bytes, forced: bool) -> None:
    after = pairs_of(data)
    assert after is not None, "asking for usage makes a body invalid"
    options = [value for name, value in before if name == "stream_options"]
    if not options:
        assert after == [("stream_options", _Pairs([("include_usage", True)])), *before]
        assert forced
        return
    assert len(after) == len(before)
    for (name, old), (other, new) in zip(before, after, strict=True):
        assert name == other
        if name == "stream_options" and (old is None or isinstance(old, _Pairs)):
            assert [value for key, value in new if key == "include_usage"]
            assert all(value is True for key, value in new if key == "include_usage")
            rest = [each for each in old or [] if each[0] != "include_usage"]
            assert [each for each in new if each[0] != "include_usage"] == rest
        else:
            assert old == new
    # By their bytes: to Python, 1 is true.
    assert forced is (json.dumps(before) != json.dumps(after))


def _scan(data: bytes, pairs: list[tuple[str, Any]] | None) -> None:
    whole = _scanned([data])
    for pieces in ways(data):
        assert _scanned(pieces) == whole, "the scanner finds something else in another cut"
    if pairs is None or (whole is None and _too_much(pairs, data)):
        return
    assert whole is not None, "the scanner refuses a valid object"
    for name in _NAMES:
        found = whole.get(name, [])
        assert all(data[each.start : each.end] == each.raw for each in found)
        told = [json.loads(each.raw, object_pairs_hook=_Pairs) for each in found]
        assert told == [value for key, value in pairs if key == name]


def _scanned(pieces: Sequence[bytes]) -> dict[str, list[Found]] | None:
    scanner = Scanner(_WANTED)
    try:
        for piece in pieces:
            scanner.feed(piece)
        scanner.end()
    except BadJson:
        return None
    return scanner.found
