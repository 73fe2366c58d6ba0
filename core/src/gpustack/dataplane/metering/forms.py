"""The field ``model`` of a multipart form, as audio is sent, found in pieces and without a copy of the files."""

from __future__ import annotations

import re

from gpustack.dataplane.errors import ApiError
from gpustack.dataplane.metering.requests import Asked

#: Bytes of one part's headers, and of a value that is looked at.
_HEADERS, _VALUE = 8 << 10, 4 << 10
#: A form with more parts than this is no request to a model.
_PARTS = 256
#: The fields that matter.
_WANTED = ("model", "stream")

_BOUNDARY = re.compile(r'boundary=(?:"([^"\\\r\n]{1,70})"|([^\s;"]{1,70}))(?:;|\s|$)', re.IGNORECASE)
#: The headers of a part, each after a line's end. Readers differ about all else: lines that are folded, other blanks.
_HEADER_LINES = re.compile(rb"(?:\r\n[!#$%&'*+.^_`|~0-9A-Za-z-]++:[^\r\n\0]*+)*+")
_DISPOSITION = re.compile(rb"\r\ncontent-disposition:([^\r\n]*)", re.IGNORECASE)
_PARAMETERS = rb'(?: *; *[^\s=;",]+=(?:"(?:[^"\\]|\\.)*"|[^\s;",]*))*'
_VALUE_OF_DISPOSITION = re.compile(rb" *form-data(" + _PARAMETERS + rb") *;? *", re.IGNORECASE)
_PARAMETER = re.compile(rb'; *([^\s=;",]+)=(?:"((?:[^"\\]|\\.)*)"|([^\s;",]*))')
_ENCODING = re.compile(rb"(?:^|\r\n)content-transfer-encoding[ \t]*:", re.IGNORECASE)


def boundary_of(content_type: str) -> bytes | None:
    """Return the boundary that a Content-Type of multipart/form-data gives, None when it gives none, or two."""
    if content_type.partition(";")[0].strip().lower() != "multipart/form-data":
        return None
    found = _BOUNDARY.findall(content_type)
    return "".join(found[0]).encode("latin-1", "replace") if len(found) == 1 else None


class FormReader:
    """Takes the bytes of a form as they come. ``feed`` and ``end`` raise ApiError 400 with what is wrong.

    Refused are a second ``model`` or ``stream``, as the engine might read the other one, and names written so that
    readers differ about them.
    """

    __slots__ = ("_base", "_closed", "_delimiter", "_field", "_found", "_left", "_parts", "_state")

    def __init__(self, boundary: bytes) -> None:
        self._delimiter = b"\r\n--" + boundary
        # The first delimiter needs no line before it.
        self._left = b"\r\n"
        self._base = -2
        self._state = _skip
        self._field = ""
        self._found: dict[str, tuple[int, int, bytes]] = {}
        self._parts = 0
        self._closed = False

    def feed(self, piece: bytes) -> None:
        """Take the next bytes, cut anywhere."""
        data = self._left + piece if self._left else piece
        position = 0
        while (after := self._state(self, data, position)) >= 0:
            position = after
        self._base += position
        self._left = data[position:]
        # Of a file's content only what may be the beginning of a delimiter is kept.
        if self._state is _skip and len(self._left) > (keep := len(self._delimiter) - 1):
            self._base += len(self._left) - keep
            self._left = self._left[-keep:]

    def end(self) -> Asked:
        """Return what the form asks for, now that it is whole."""
        if not self._closed:
            raise _bad("the form in the request body ends before its last boundary")
        if (model := self._found.get("model")) is None:
            raise _bad(
                'the form in the request body lacks "model", the name of the model to ask', param="model"
            )
        try:
            name = model[2].decode()
        except UnicodeDecodeError:
            raise _bad('"model" is not valid UTF-8', param="model") from None
        stream = self._found.get("stream", (0, 0, b""))[2].lower() in (b"true", b"1")
        return Asked(name, model[:2], stream, ())


def rename_in_form(body: bytes, span: tuple[int, int], new: str) -> bytes:
    """Return ``body`` with ``new`` as the value of its field ``model``."""
    return body[: span[0]] + new.encode() + body[span[1] :]


def find(body: bytes, boundary: bytes) -> Asked:
    """Return what a whole form asks for. Raises ApiError 400."""
    reader = FormReader(boundary)
    reader.feed(body)
    return reader.end()


# Each step returns where the next one goes on, -1 when it needs more bytes.


def _skip(reader: FormReader, data: bytes, position: int) -> int:
    at = data.find(reader._delimiter, position)
    if at < 0:
        return -1
    reader._state = _after_delimiter
    return at + len(reader._delimiter)


def _after_delimiter(reader: FormReader, data: bytes, position: int) -> int:
    if data.startswith(b"--", position):
        reader._closed = True
        reader._state = _ignore
        return position + 2
    end = data.find(b"\r\n", position)
    if end < 0:
        if len(data) - position > _HEADERS:
            raise _bad("the form in the request body has a boundary that never ends")
        return -1
    if data[position:end].strip(b" \t"):
        # The boundary is the beginning of another line: content, then.
        if reader._field in _WANTED:
            raise _bad(f'"{reader._field}" in the form has a boundary inside', param=reader._field)
        reader._state = _skip
        return position
    reader._parts += 1
    if reader._parts > _PARTS:
        raise _bad(f"the form in the request body has more than {_PARTS} parts")
    reader._state = _headers
    # The line's end stays, so that a part without headers has the empty line that ends them.
    return end


def _headers(reader: FormReader, data: bytes, position: int) -> int:
    end = data.find(b"\r\n\r\n", position)
    if end < 0 or end - position > _HEADERS:
        if len(data) - position > _HEADERS:
            raise _bad("the form in the request body has a part with too long headers")
        return -1
    reader._field = _field_name(data[position:end])
    reader._state = _content
    return end + 4


def _content(reader: FormReader, data: bytes, position: int) -> int:
    """Some readers take a boundary at a content's very beginning for the end of an empty one."""
    boundary = reader._delimiter[2:]
    begun = data[position : position + len(boundary)]
    if begun == boundary:
        raise _bad("a part of the form in the request body begins with the boundary")
    if boundary.startswith(begun):
        return -1
    reader._state = _value if reader._field in _WANTED else _skip
    return position


def _value(reader: FormReader, data: bytes, position: int) -> int:
    end = data.find(reader._delimiter, position)
    after = end + len(reader._delimiter)
    if end < 0 or end - position > _VALUE:
        if len(data) - position > _VALUE + len(reader._delimiter):
            raise _bad(f'"{reader._field}" in the form is too long', param=reader._field)
        return -1
    if reader._field in reader._found:
        raise _bad(f'the form in the request body has "{reader._field}" more than once', param=reader._field)
    reader._found[reader._field] = (reader._base + position, reader._base + end, data[position:end])
    reader._state = _after_delimiter
    return after


def _ignore(reader: FormReader, data: bytes, position: int) -> int:
    return len(data) if position < len(data) else -1


def _field_name(headers: bytes) -> str:
    if not _HEADER_LINES.fullmatch(headers):
        raise _bad("a part of the form in the request body has headers that cannot be read for sure")
    dispositions = _DISPOSITION.findall(headers)
    if len(dispositions) != 1:
        raise _bad("a part of the form in the request body needs exactly one Content-Disposition")
    value = _VALUE_OF_DISPOSITION.fullmatch(dispositions[0])
    if value is None:
        raise _bad(
            "a part of the form in the request body has a Content-Disposition that cannot be read for sure"
        )
    names: list[bytes] = []
    extended = False
    for key, quoted, plain in _PARAMETER.findall(value[1]):
        if key.lower() == b"name":
            names.append(quoted or plain)
        extended |= key.lower() == b"name*"
    if len(names) != 1 or extended or b"\\" in names[0] or b"%" in names[0]:
        if b"model" not in headers.lower() and len(names) == 1 and not extended:
            return ""
        raise _bad("a part of the form in the request body has a name that cannot be read for sure")
    name = names[0].decode(errors="replace").strip()
    if name in _WANTED and _ENCODING.search(headers):
        raise _bad(f'"{name}" in the form must be sent as plain text', param=name)
    return name


def _bad(message: str, *, param: str | None = None) -> ApiError:
    return ApiError(400, message, code="invalid_request", param=param)
