"""Is it what was declared? A plugin's answers may be anything, whatever their types say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from packaging.requirements import InvalidRequirement, Requirement


def is_text(value: object) -> bool:
    """Tell whether it is a text that says something."""
    return isinstance(value, str) and bool(value.strip())


def is_count(value: object, *, least: int = 0, most: int | None = None) -> bool:
    """Tell whether it is a whole number within the limits; True and False are none."""
    if not isinstance(value, int) or isinstance(value, bool):
        return False
    return least <= value and (most is None or value <= most)


def is_sequence(value: object) -> bool:
    """Tell whether it is a sequence of things; a text is one thing."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def are_texts(mapping: object) -> bool:
    """Tell whether it is a mapping of texts to texts; the values may be empty."""
    return isinstance(mapping, Mapping) and all(
        is_text(name) and isinstance(value, str) for name, value in mapping.items()
    )


def is_url(value: object) -> bool:
    """Tell whether it is an absolute URL that a browser follows."""
    if not isinstance(value, str) or value != value.strip() or not value.isprintable():
        return False
    try:
        parts = urlsplit(value)
        return parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        return False


def is_requirement(value: object) -> bool:
    """Tell whether it names a package as pip's requirements do."""
    try:
        Requirement(str(value))
    except InvalidRequirement:
        return False
    return isinstance(value, str)
