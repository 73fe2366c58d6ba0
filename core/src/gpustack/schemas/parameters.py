"""Engine parameters as users give them, and as an engine wants them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator
from typing import Literal

_FLAG = re.compile(r"--?[A-Za-z]")
_APART = re.compile(r"--?[A-Za-z][^\s=]*\s")


def in_format(parameters: Iterable[str], how: Literal["", "words", "space", "equal"]) -> tuple[str, ...]:
    """Return parameters written as ``how`` says: ``--name value`` in two words, or ``--name=value``.

    What is no flag with a value stays as it is. ``words`` only takes apart what was written as one, as ``--name value``;
    empty leaves that to the backend too.
    """
    match how:
        case "":
            return tuple(parameters)
        case "words":
            return tuple(_words(parameters))
        case "space":
            return tuple(_spaced(_words(parameters)))
        case "equal":
            return tuple(_equal(list(_words(parameters))))


def _words(parameters: Iterable[str]) -> Iterator[str]:
    for each in parameters:
        text = each.strip()
        if not _APART.match(text):
            yield text
            continue
        try:
            yield from shlex.split(text)
        except ValueError:
            yield text  # a quotation mark that is meant as one


def _spaced(words: Iterable[str]) -> Iterator[str]:
    for word in words:
        flag, equals, value = word.partition("=")
        if equals and flag.startswith("--"):
            yield flag
            yield value
        else:
            yield word


def _equal(words: list[str]) -> Iterator[str]:
    number = 0
    while number < len(words):
        word = words[number]
        following = words[number + 1] if number + 1 < len(words) else None
        alone = following is None or bool(_FLAG.match(following))
        if not alone and word.startswith("--") and "=" not in word:
            yield f"{word}={following}"
            number += 2
        else:
            yield word
            number += 1
