"""Ways to cut an input into pieces: a parser has to find the same in all of them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from zlib import crc32

#: Longer inputs are not given byte by byte, for the time that takes.
_BYTEWISE = 400


def ways(data: bytes) -> Iterator[list[bytes]]:
    """Yield ``data`` byte by byte and in a few cuts by chance, the same ones for the same input."""
    if len(data) <= _BYTEWISE:
        yield [data[at : at + 1] for at in range(len(data))]
    chance = random.Random(crc32(data))
    for count in (1, 3):
        places = sorted(chance.randrange(len(data) + 1) for _ in range(count))
        pieces = [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]
        yield [piece for piece in pieces if piece]
