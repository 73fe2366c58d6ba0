"""Values of the scheduler as JSON and back: dataclasses become objects without the fields that have their default.

    document = encode(request)
    assert decode(Request, document) == request

What a type is made of is read from its annotations once, so a field that is added to a value is carried from then on,
and documents from before it was added are read with its default.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from functools import cache
from operator import attrgetter
from types import MappingProxyType, NoneType, UnionType
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from gpustack.kit.errors import GPUStackError

T = TypeVar("T")

Document = Any
_Function = Callable[[Any], Any]

#: Values that JSON has itself.
_PLAIN = (str, int, bool, float, NoneType)
#: Stands for a field without a default: nothing is equal to it.
_NO_DEFAULT = object()


class BadRecord(GPUStackError):
    """A document that is no record of this version. The message says what of it is wrong."""


def encode(value: object) -> Document:
    """Return ``value``, a dataclass of the scheduler, as what :mod:`json` can write."""
    kind: Any = type(value)
    return encoder(kind)(value)


def decode(kind: type[T], document: Document) -> T:
    """Return the value that ``document`` tells of. Raises BadRecord when it tells of none."""
    try:
        return cast("T", _decoder(cast("Any", kind))(document))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise BadRecord(f"no record of a {kind.__name__}: {error}") from error


@cache
def encoder(kind: Any) -> _Function:
    """Return what turns a value of ``kind`` into a document."""
    return _through_none(kind, _encoder)


def _encoder(kind: Any) -> _Function:
    origin, inner = get_origin(kind), get_args(kind)
    if kind in _PLAIN:
        return _same
    if isinstance(kind, type) and issubclass(kind, Enum):
        return attrgetter("value")
    if is_dataclass(kind):
        return _encode_fields(cast("type", kind))
    if origin is tuple and len(inner) == 2 and inner[1] is Ellipsis:
        each = encoder(inner[0])
        return lambda value: [each(some) for some in value]
    if origin is frozenset:
        return sorted
    if origin is Mapping:
        of_value = encoder(inner[1])
        # JSON has text for keys, and the order of the names is none of the value.
        return lambda value: {str(key): of_value(value[key]) for key in sorted(value)}
    raise TypeError(f"{kind} cannot be recorded")


def _encode_fields(kind: type) -> _Function:
    hints = get_type_hints(kind)
    some = [each for each in fields(kind) if each.init]
    table = [(each.name, _default(each), encoder(hints[each.name])) for each in some]
    # One more name, so that a tuple comes even where there is one field.
    items = attrgetter(*(each.name for each in some), "__class__")

    def made(value: Any) -> Document:
        found = {}
        for (name, default, inner), item in zip(table, items(value), strict=False):
            if item is not default and item != default:
                found[name] = item if inner is _same else inner(item)
        return found

    return made


def _same(value: Any) -> Any:
    return value


@cache
def _decoder(kind: Any) -> _Function:
    return _through_none(kind, _decode)


def _decode(kind: Any) -> _Function:
    origin, inner = get_origin(kind), get_args(kind)
    if kind in _PLAIN:
        return lambda document: _of_type(kind, document)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind
    if is_dataclass(kind):
        return _decode_fields(cast("type", kind))
    if origin is tuple and len(inner) == 2 and inner[1] is Ellipsis:
        each = _decoder(inner[0])
        return lambda document: tuple(each(some) for some in _of_type(list, document))
    if origin is frozenset:
        item = _decoder(inner[0])
        return lambda document: frozenset(item(some) for some in _of_type(list, document))
    if origin is Mapping:
        key_kind, of_value = inner[0], _decoder(inner[1])
        return lambda document: MappingProxyType(
            {key_kind(key): of_value(item) for key, item in _of_type(dict, document).items()}
        )
    raise TypeError(f"{kind} cannot be recorded")


def _decode_fields(kind: type) -> _Function:
    hints = get_type_hints(kind)
    inner = {each.name: _decoder(hints[each.name]) for each in fields(kind) if each.init}

    def made(document: Document) -> Any:
        given = _of_type(dict, document)
        if unknown := sorted(given.keys() - inner.keys()):
            raise BadRecord(
                f"a {kind.__name__} has no field {unknown[0]!r}; a newer version of GPUStack wrote this"
            )
        return kind(**{name: inner[name](item) for name, item in given.items()})

    return made


def _of_type(kind: Any, document: Document) -> Any:
    fine = isinstance(document, kind) and (kind is bool or not isinstance(document, bool))
    if kind is float and isinstance(document, int) and not isinstance(document, bool):
        return float(document)
    if not fine:
        raise TypeError(f"{document!r} is not of type {kind.__name__}")
    return document


def _default(each: Any) -> object:
    if each.default is not MISSING:
        return each.default
    if each.default_factory is not MISSING:
        return each.default_factory()
    return _NO_DEFAULT


def _through_none(kind: Any, make: Callable[[Any], _Function]) -> _Function:
    """Return what ``make`` makes of ``kind``; None goes through as it is where the kind allows it."""
    if get_origin(kind) in (Union, UnionType):
        rest = [each for each in get_args(kind) if each is not NoneType]
        if len(rest) == 1:
            made = make(rest[0])
            return lambda value: None if value is None else made(value)
    return make(kind)
