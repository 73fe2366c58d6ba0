"""How much a part of the program holds: the sizes of all containers that can be reached from it.

before = held_by(services)
...
assert grown(before, held_by(services)) == {}
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Mapping
from typing import Any

#: Objects of other modules are not looked into.
_OURS = ("gpustack", "asyncpg", "tests")
_DEEPEST = 16

#: Sizes by where the containers are, as in ``.reconciler.state.models``; ``[]`` is any member of one.
Sizes = dict[str, int]


def held_by(root: object) -> Sizes:
    """Return the number of members of each container below ``root``; those at the same place count together."""
    seen: dict[int, object] = {}
    found: Sizes = {}
    todo: list[tuple[object, str, int]] = [(root, "", 0)]
    while todo:
        thing, place, depth = todo.pop()
        if id(thing) in seen or depth > _DEEPEST:
            continue
        seen[id(thing)] = thing  # held, so that its id is nobody else's meanwhile
        if isinstance(thing, dict | list | set | deque):
            found[place] = found.get(place, 0) + len(thing)
        todo += [(each, f"{place}{name}", depth + 1) for name, each in _parts(thing)]
    return found


def grown(before: Sizes, after: Sizes) -> dict[str, tuple[int, int]]:
    """Return the places with more members than before."""
    return {
        place: (before.get(place, 0), size) for place, size in after.items() if size > before.get(place, 0)
    }


def _parts(thing: object) -> Iterator[tuple[str, Any]]:
    if isinstance(thing, str | bytes | type):
        return
    if isinstance(thing, Mapping):
        for key, value in [*thing.items()]:
            yield "[key]", key
            yield "[]", value
    elif isinstance(thing, Collection) and isinstance(thing, list | tuple | set | frozenset | deque):
        for each in [*thing]:
            yield "[]", each
    elif type(thing).__module__.startswith(_OURS):
        for name in (*vars(thing), *_slots(thing)) if hasattr(thing, "__dict__") else _slots(thing):
            if (value := getattr(thing, name, None)) is not None:
                yield f".{name}", value


def _slots(thing: object) -> Iterator[str]:
    for kind in type(thing).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        yield from (slots,) if isinstance(slots, str) else slots
