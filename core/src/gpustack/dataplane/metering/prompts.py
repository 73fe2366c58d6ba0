"""How long a prompt is, where the engine has not told it: the text in it, without the JSON around it.

Only what was broken off is billed by this, and a stream whose gateway is killed; it is not done for other requests, as
it decodes the body.
"""

from __future__ import annotations

import msgspec

from gpustack.dataplane.metering.usage import BYTES_PER_TOKEN

#: Bodies up to this are decoded, in a tenth of a millisecond or so.
_DECODED = 64 << 10
#: What a template puts around each message: its role, and where it begins and ends.
_AROUND = 4 * BYTES_PER_TOKEN
#: Values of members that describe the text beside them, and are none.
_NO_TEXT = frozenset(("role", "type", "id", "tool_call_id", "media_type", "detail", "format"))
#: Members with pictures and sound, whose bytes are no text.
_NO_PROMPT = frozenset(("image_url", "input_audio", "source", "file", "image", "cache_control"))
#: Nesting that is followed.
_DEPTH = 12


class _Prompt(msgspec.Struct, gc=False):
    """What engines read; each API has some of it."""

    messages: msgspec.Raw = msgspec.Raw()
    system: msgspec.Raw = msgspec.Raw()
    instructions: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()
    query: msgspec.Raw = msgspec.Raw()
    documents: msgspec.Raw = msgspec.Raw()
    text_1: msgspec.Raw = msgspec.Raw()
    text_2: msgspec.Raw = msgspec.Raw()
    tools: msgspec.Raw = msgspec.Raw()


_decode = msgspec.json.Decoder(_Prompt).decode
_value = msgspec.json.Decoder().decode


def text_bytes(body: bytes, size: int) -> int:
    """Return the bytes of text that the JSON ``body`` asks an engine to read.

    ``size`` is what a body counts as that is too large to be decoded, or cannot be.
    """
    if len(body) > _DECODED:
        return size
    try:
        found = _decode(body)
        total = len(found.tools)  # engines show the model their JSON
        for name in found.__struct_fields__:
            if name != "tools" and (raw := getattr(found, name)):
                total += _text(_value(raw), _DEPTH)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return size
    return min(total, size)


def _text(value: object, depth: int) -> int:
    if isinstance(value, str):
        return 0 if value.startswith("data:") else len(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, int):
        return BYTES_PER_TOKEN  # a token by its number
    if depth == 0:
        return 0
    if isinstance(value, list):
        return sum(_text(each, depth - 1) for each in value)
    if isinstance(value, dict):
        around = _AROUND if "role" in value else 0
        texts = (each for name, each in value.items() if name not in _NO_TEXT and name not in _NO_PROMPT)
        return around + sum(_text(each, depth - 1) for each in texts)
    return 0
