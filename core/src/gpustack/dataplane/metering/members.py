"""Members of a JSON object's top level, found in pieces as the object arrives, without reading the rest in full.

A decoder needs the whole document and holds the event loop while it reads megabytes, in a thread as well. This scanner
looks only where strings and brackets begin and end, with the few operations that CPython does fast on bytes, and needs
well under a millisecond for each 64 KiB. It finds a wanted name however it is written (``"mod\\u0065l"`` too), every
time it stands there, and takes nothing for a member that stands deeper or inside a string.

It refuses no valid object of at most :data:`MAX_DEPTH` levels. Of the invalid ones it refuses what could make two
readers see different members or hurt a reader: what does not end, has more after its end, is too deep, is no UTF-8,
has lone surrogates or words such as ``NaN``. Misplaced commas are left to whoever reads it all.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

#: Deeper nesting is refused: readers written recursively end there with an error of their own, or a crash.
MAX_DEPTH = 500
#: The longest value of a wanted member, in bytes.
MAX_VALUE = 64 << 10
_SLICE = 64 << 10

_BLANK = b" \t\r\n"
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_COLON = re.compile(rb"[ \t\r\n]*+(:?)[ \t\r\n]*+")
_SCALAR = re.compile(rb"[^ \t\r\n,{}\[\]\"]++(?=[ \t\r\n,{}\[\]])")
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[{}\[\]"]', re.DOTALL)
_LONE = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]..)\\u[dD][c-fC-F]", re.DOTALL
)
_HIGH = re.compile(rb"\\u[dD][89abAB]")
_LETTERS = re.compile(rb"[A-Za-z]+\Z")
#: The longest tail that is half of something: an escaped surrogate pair, or a word.
_PAIR, _WORD = 12, 8
_NO_WORD = b'{}[]:,"0123456789+-.' + _BLANK
#: Opening brackets become 1, closing ones -1, everything else goes.
_LEVELS = bytes.maketrans(b"{[}]", b"\x01\x01\xff\xff")
_NO_BRACKET = bytes(set(range(256)) - set(b"{}[]"))


class BadJson(ValueError):
    """What arrives is no JSON object that can be read; the text follows "the request body"."""


class Found(NamedTuple):
    """The value of one wanted member: where it stands, counted from the first byte, and as it was written."""

    start: int
    end: int
    raw: bytes


@dataclass(frozen=True, slots=True)
class Wanted:
    """Names to look for, prepared once."""

    names: tuple[str, ...]
    pattern: re.Pattern[bytes]
    #: The longest way to write one of them, quotes included.
    longest: int

    @classmethod
    def of(cls, *names: str) -> Wanted:
        """Prepare ``names``, which are of ASCII letters and underscores."""
        ways = b"|".join(b"(" + b"".join(_ways(letter) for letter in name) + b")" for name in names)
        return cls(names, re.compile(rb'"(?<!\\")(?:' + ways + b')"'), 6 * max(map(len, names)) + 2)


def _ways(letter: str) -> bytes:
    digits = b"".join(
        b"[%c%c]" % (digit, digit - 32) if digit > 57 else b"%c" % digit for digit in b"%02x" % ord(letter)
    )
    return b"(?:%b|\\\\u00%b)" % (letter.encode(), digits)


class Scanner:
    """Takes the bytes of one object as they come. ``found`` has what was found so far, by name, in order."""

    __slots__ = (
        "_base",
        "_begun",
        "_depth",
        "_inside",
        "_left",
        "_over",
        "_utf8",
        "_wanted",
        "found",
    )

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self.found: dict[str, list[Found]] = {}
        self._left = b""
        #: How many bytes came before ``_left``.
        self._base = 0
        self._depth = 0
        self._inside = False
        self._begun = self._over = False
        self._utf8 = codecs.getincrementaldecoder("utf-8")()

    def feed(self, piece: bytes) -> None:
        """Take the next bytes, cut anywhere. Raises BadJson as soon as something is wrong."""
        for start in range(0, len(piece), _SLICE):
            part = piece[start : start + _SLICE]
            self._check_utf8(part, last=False)
            self._take(self._left + part, last=False)

    def end(self) -> None:
        """Say that nothing comes any more. Raises BadJson when the object is not whole."""
        self._check_utf8(b"", last=True)
        self._take(self._left, last=True)
        if not self._begun:
            raise BadJson("is empty")
        if not self._over:
            raise BadJson("is not valid JSON: it ends before its object does")

    def _check_utf8(self, part: bytes, *, last: bool) -> None:
        if part.isascii() and not self._utf8.getstate()[0]:
            return
        try:
            self._utf8.decode(part, last)
        except UnicodeDecodeError:
            raise BadJson("is not valid UTF-8") from None

    def _take(self, data: bytes, *, last: bool) -> None:
        position = 0 if self._begun else self._begin(data)
        look = position
        checked = False
        while (match := self._wanted.pattern.search(data, look)) is not None:
            start = match.start()
            self._pass(_plain(data[position:start]))
            position, look = start, start + 1
            if self._inside or self._depth != 1:
                if not checked and self._stays_deep(data[position:]):
                    break
                checked = True
                continue
            end = self._value(data, match, last=last)
            if end < 0:  # its value has not come as a whole
                if len(data) - start > MAX_VALUE:
                    raise BadJson(f'has a value of "{_name(self._wanted, match)}" that is too long')
                self._keep(data, start)
                return
            position = look = end
        self._keep(data, self._pass_most(data, position, last=last))

    def _keep(self, data: bytes, position: int) -> None:
        self._base += position
        self._left = data[position:]

    def _begin(self, data: bytes) -> int:
        """Return where the object's first member may stand, 0 while nothing has come but blanks."""
        if data[:3] == codecs.BOM_UTF8 or data[:2] in (codecs.BOM_UTF16_BE, codecs.BOM_UTF16_LE):
            raise BadJson("begins with a byte order mark; send plain UTF-8")
        rest = data.lstrip(_BLANK)
        if not rest:
            return 0
        if rest[:1] != b"{":
            raise BadJson("must be a JSON object")
        self._begun, self._depth = True, 1
        return len(data) - len(rest) + 1

    def _value(self, data: bytes, key: re.Match[bytes], *, last: bool) -> int:
        """Note the value that follows ``key``; return where it ends, or the key does when it is none; -1: not yet."""
        colon = _COLON.match(data, key.end())
        assert colon is not None
        start = colon.end()
        if start == len(data) and not last:
            return -1
        if not colon[1]:
            return key.end()
        end = _value_end(data, start)
        if end < 0:
            if last:
                raise BadJson("is not valid JSON: it ends before its object does")
            return -1
        name = _name(self._wanted, key)
        self.found.setdefault(name, []).append(Found(self._base + start, self._base + end, data[start:end]))
        return end

    def _pass_most(self, data: bytes, position: int, *, last: bool) -> int:
        """Go over the rest but for what may be the first half of something; return where that begins."""
        if not self._begun:
            return len(data)
        rest = data[position:]
        plain = _plain(rest)
        whole = len(rest)
        if not last:
            if self._inside ^ (plain.count(b'"') & 1):
                quote = plain.rfind(b'"')
                if quote >= 0 and whole - quote <= self._wanted.longest:
                    whole = quote
                else:
                    whole = _before_escape(plain)
            elif (letters := _LETTERS.search(rest[-_WORD - 1 :])) is not None:
                if len(letters[0]) > _WORD:
                    raise _foreign(letters[0])
                whole -= len(letters[0])
        self._pass(plain[:whole])
        return position + whole

    def _pass(self, plain: bytes) -> None:
        """Follow strings and brackets over bytes that no escape disturbs any more."""
        if not plain:
            return
        if self._over:
            if plain.strip(_BLANK):
                raise BadJson("is not valid JSON: it goes on after its object's end")
            return
        parts = plain.split(b'"')
        outside = b'"'.join(parts[1::2] if self._inside else parts[::2])
        if (b"\\ud" in plain or b"\\uD" in plain) and _LONE.search(plain) is not None:
            raise BadJson("has half of a surrogate pair, which is no character")
        self._inside ^= (len(parts) - 1) & 1 == 1
        if words := outside.translate(None, _NO_WORD):
            _check_words(outside, words)
        if levels := outside.translate(_LEVELS, _NO_BRACKET):
            self._nest(levels, plain)

    def _stays_deep(self, data: bytes) -> bool:
        """Tell whether no more of ``data`` is at the top level: hundreds of deeper keys need no look each."""
        parts = _plain(data).split(b'"')
        outside = b"".join(parts[1::2] if self._inside else parts[::2])
        levels = memoryview(outside.translate(_LEVELS, _NO_BRACKET)).cast("b")
        return min(accumulate(levels, initial=self._depth)) > 1

    def _nest(self, levels: bytes, plain: bytes) -> None:
        up = levels.count(b"\x01")
        down = len(levels) - up
        if self._depth + up > MAX_DEPTH or self._depth <= down:
            depths = list(accumulate(memoryview(levels).cast("b"), initial=self._depth))
            if max(depths) > MAX_DEPTH:
                raise BadJson("is nested too deeply")
            if 0 in depths:
                # A string after it would be in ``plain`` only, and one that does not end in neither.
                ended = depths.index(0) == len(levels) and plain.rstrip(_BLANK)[-1:] in (b"}", b"]")
                if not ended or self._inside:
                    raise BadJson("is not valid JSON: it goes on after its object's end")
                self._over = True
        self._depth += up - down


def find(document: bytes, *names: str) -> dict[str, list[Found]]:
    """Return the top-level members of a whole object that have one of ``names``. Raises BadJson."""
    scanner = Scanner(Wanted.of(*names))
    scanner.feed(document)
    scanner.end()
    return scanner.found


def _name(wanted: Wanted, key: re.Match[bytes]) -> str:
    assert key.lastindex is not None
    return wanted.names[key.lastindex - 1]


def _plain(data: bytes) -> bytes:
    """Return ``data``, as long as before, without escaped quotes and backslashes."""
    if b"\\" not in data:
        return data
    return data.replace(b"\\\\", b"xx").replace(b'\\"', b"xx")


def _value_end(data: bytes, start: int) -> int:
    """Return where the value that begins at ``start`` ends, -1 when that is not there yet."""
    first = data[start : start + 1]
    if first == b'"':
        match = _STRING.match(data, start)
        return -1 if match is None else match.end()
    if first not in (b"{", b"["):
        match = _SCALAR.match(data, start)
        return start if match is None and start < len(data) and first in b",}]" else _end(match)
    depth = 0
    for token in _TOKEN.finditer(data, start, start + MAX_VALUE):
        if token[0] in (b"{", b"["):
            depth += 1
        elif token[0] in (b"}", b"]"):
            depth -= 1
            if depth == 0:
                return token.end()
        elif token[0] == b'"':  # a string that has not ended
            return -1
    return -1


def _end(match: re.Match[bytes] | None) -> int:
    return -1 if match is None else match.end()


def _before_escape(plain: bytes) -> int:
    """Return how much of the inside of a string ends before an escape that may go on in the next piece."""
    first = plain.find(b"\\", max(0, len(plain) - _PAIR))
    if first < 0:
        return len(plain)
    return first - 6 if first >= 6 and _HIGH.match(plain, first - 6) else first


def _check_words(outside: bytes, words: bytes) -> None:
    for word in (b"true", b"false", b"null"):
        outside = outside.replace(word, b"")
    if other := outside.translate(None, _NO_WORD + b"eE"):
        raise _foreign(words if len(words) < _WORD else other)


def _foreign(word: bytes) -> BadJson:
    return BadJson(f"is not valid JSON: {word[:20].decode(errors='replace')!r} is no JSON")
