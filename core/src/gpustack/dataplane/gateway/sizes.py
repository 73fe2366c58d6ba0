"""How much a request is, before anybody has counted its tokens: bytes of text, or what weighs as much.

Pictures and sound take few tokens for their bytes, and travel as base64 within JSON, or as files in a form. A large body
is looked at in some places only, so that its size costs nothing: the more of it is base64, the more of these are.
"""

from __future__ import annotations

import string

#: So many bytes of a picture or of sound weigh as much as one of text: about a token for a KiB.
_LIGHTER = 256
#: Up to this all of a body is taken for text.
SMALL = 16 << 10
#: Bytes between two places that are looked at, at least, and how many places there are at most, as a power of two.
_STEP, _PLACES = 4 << 10, 7
#: Bytes at each place. So many without a blank, a comma or a foreign letter are no text.
_LOOK = 64
_BASE64 = (string.ascii_letters + string.digits + "+/=-_").encode()
#: Some writers escape slashes, or break lines; a text in \\u escapes has more of them than this.
_ESCAPES = tuple(b"\\" * count for count in range(5))


def size_of(body: bytes, *, form: bool = False) -> int:
    """Return the bytes of text that ``body`` weighs as much as, to the precision of one place in 128."""
    size = len(body)
    if form:
        return size // _LIGHTER
    if size <= SMALL:
        return size
    step = max(_STEP, size >> _PLACES)
    places = range(step >> 1, size, step)
    opaque = 0
    for at in places:
        if body[at : at + _LOOK].translate(None, _BASE64) in _ESCAPES:
            opaque += 1
    heavy = size * opaque // len(places)
    return size - heavy + heavy // _LIGHTER
