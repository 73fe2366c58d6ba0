"""Forms: the model that is found is the one that three other readers find, and renaming changes nothing else."""

from __future__ import annotations

import email.message
import email.parser
import email.policy
from collections.abc import Callable, Iterable, Sequence

import multipart

from gpustack.dataplane.errors import ApiError
from gpustack.dataplane.metering.forms import FormReader, boundary_of, find, rename_in_form
from gpustack.dataplane.metering.requests import Asked
from support.fuzzing.cuts import ways

_BOUNDARY = b"xYz"
_FIELD = b'Content-Disposition: form-data; name="%b"\r\n\r\n%b'
WORDS = (
    *(b"--xYz\r\n", b"\r\n--xYz\r\n", b"\r\n--xYz--\r\n", b"--xYz--", b"--xYz", b"\r\n\r\n", b"\r\n", b"\n", b"\r", b" "),
    *(b"Content-Disposition: form-data; ", b'name="model"', b'name="stream"', b"name=model", b"name*=", b'filename="a"'),
    *(b"Content-Type: text/plain", b"Content-Transfer-Encoding: base64", b"\\", b'"', b";", b"true", b"model", b"\t"),
    *(b"utf-8''model", b"%6d", b"Name=", b"form-data"),
)  # fmt: skip


def _form(*parts: bytes) -> bytes:
    return b"".join(b"--xYz\r\n%b\r\n" % part for part in parts) + b"--xYz--\r\n"


def seeds() -> Iterable[bytes]:
    """Return forms as clients send them, and some that nobody should."""
    model = _FIELD % (b"model", "größe".encode())
    file = b'Content-Disposition: form-data; name="file"; filename="a \\"model.wav"\r\nContent-Type: audio/wav\r\n\r\n'
    yield _form(model, file + b"RIFF\r\n--xY\r\n--xYzz\r\n\r\n")
    yield _form(file + b"\0\1", model, _FIELD % (b"stream", b"true"))
    yield b"preamble\r\n" + _form(_FIELD % (b"prompt", b""), model) + b"epilogue"
    yield _form(_FIELD % (b"model", b"a"), _FIELD % (b"model", b"b"))
    yield _form(b"Content-Disposition: form-data; name*=utf-8''model\r\n\r\nx", model)
    yield _form(b'Content-Disposition: form-data; name="a"; name="model"\r\n\r\nx', model)
    yield _form(b"content-disposition:form-data;NAME=model\r\n\r\nx")
    yield _form(b'X: y\r\nContent-Disposition: form-data;\r\n name="model"\r\n\r\nx')
    yield _form(b"Content-Transfer-Encoding: base64\r\n" + model)
    yield _form(model)[:-6]
    yield _form()


def run(data: bytes) -> None:
    """Read the form ``data`` at once and in pieces."""
    asked = _attempt(lambda: find(data, _BOUNDARY))
    for pieces in ways(data):
        assert _attempt(lambda pieces=pieces: _in_pieces(pieces)) == asked, (
            "another cut is read as something else"
        )  # type: ignore[misc]
    boundary_of(data.decode("latin-1"))
    if asked is None:
        return
    assert data[slice(*asked.span)].decode() == asked.model
    _agrees(data, asked.model)
    renamed = rename_in_form(data, asked.span, "n")
    again = find(renamed, _BOUNDARY)
    assert (again.model, again.stream) == ("n", asked.stream)
    assert rename_in_form(renamed, again.span, asked.model) == data


def _attempt(reading: Callable[[], Asked]) -> Asked | None:
    try:
        return reading()
    except ApiError as error:
        if error.status != 400 or "\n" in error.message:
            raise AssertionError("an error that is not clear") from error
        return None


def _in_pieces(pieces: Sequence[bytes]) -> Asked:
    reader = FormReader(_BOUNDARY)
    for piece in pieces:
        reader.feed(piece)
    return reader.end()


def _agrees(data: bytes, model: str) -> None:
    named = [content for name, content in _parts(data) if name == "model"]
    assert named == [model.encode()], f"another reader finds {named}"
    try:
        with multipart.PushMultipartParser(
            _BOUNDARY, max_header_count=100, header_charset="latin-1"
        ) as parser:
            segments: list[tuple[str, bytes]] = []
            for event in [*parser.parse(data), *parser.parse(b"")]:
                if isinstance(event, multipart.MultipartSegment):
                    segments.append((event.name, b""))
                elif event:
                    segments[-1] = (segments[-1][0], segments[-1][1] + event)
    except multipart.MultipartError:
        return  # it would refuse, and so would an engine that reads by it
    named = [content for name, content in segments if name == "model"]
    assert named == [model.encode()], f"multipart finds {named}"


def _parts(data: bytes) -> list[tuple[str | None, bytes]]:
    """Return name and content of each part, by the letter, the header lines as the standard library reads them."""
    lines = (b"\r\n" + data).split(b"\r\n--" + _BOUNDARY)
    parts: list[bytes] = []
    open_part = False
    for each in lines[1:]:
        padding, end, content = each.partition(b"\r\n")
        if each.startswith(b"--"):
            break
        if end and not padding.strip(b" \t"):
            parts.append(content)
            open_part = True
        elif open_part:
            parts[-1] += b"\r\n--" + _BOUNDARY + each
    found = []
    for part in parts:
        if part.startswith(b"\r\n"):
            headers, content = b"", part[2:]
        else:
            headers, _, content = part.partition(b"\r\n\r\n")
        message = email.parser.BytesParser(policy=email.policy.compat32).parsebytes(headers + b"\r\n\r\n")
        found.append((_name(message), content))
    return found


def _name(message: email.message.Message) -> str | None:
    name = message.get_param("name", header="content-disposition")
    if isinstance(name, tuple):
        name = name[2]
    return name.strip() if isinstance(name, str) else None
