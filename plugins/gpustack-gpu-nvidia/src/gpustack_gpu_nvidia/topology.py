"""Which devices are near each other, out of what a driver says of each two of them. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

#: The levels at which the ways of two devices meet, widest first, with what we call the part that they share.
LEVELS: tuple[tuple[int, str], ...] = (
    (40, "node"),  # one memory node of the machine
    (30, "bridge"),  # one host bridge
    (20, "switches"),  # several PCIe switches
    (10, "switch"),  # one PCIe switch
    (0, "board"),
)


def paths(count: int, ancestor: Callable[[int, int], int]) -> tuple[tuple[str, ...], ...]:
    """Return for each of ``count`` devices the names of the parts that it hangs below, widest first.

    ``ancestor`` gives the level at which the ways of two devices meet: 0 for one board up to 50 for no more than the
    machine. Two devices share the names of exactly the levels at which, or below which, they meet, where the levels
    are those of a tree; where they are not, being near by way of a third device is being near.
    """
    found: list[list[str]] = [[] for _ in range(count)]
    levels = {(a, b): ancestor(a, b) for a in range(count) for b in range(a + 1, count)}
    for limit, name in LEVELS:
        group = list(range(count))
        for (a, b), level in levels.items():
            if level <= limit and group[a] != group[b]:
                low, high = sorted((group[a], group[b]))
                group = [low if each == high else each for each in group]
        numbers = {first: number for number, first in enumerate(sorted(set(group)))}
        for device, first in enumerate(group):
            found[device].append(f"{name}{numbers[first]}")
    return tuple(map(tuple, found))


def cliques(count: int, linked: Callable[[int, int], bool]) -> tuple[tuple[int, ...], ...]:
    """Return groups of devices that are all linked with each other, each device in at most one, none alone.

    Where links form no such groups (the hybrid cube of eight V100), the first device that fits a group joins it.
    """
    groups: list[list[int]] = []
    for device in range(count):
        for group in groups:
            if all(linked(other, device) for other in group):
                group.append(device)
                break
        else:
            groups.append([device])
    return tuple(tuple(group) for group in groups if len(group) > 1)


def node_of(mask: Sequence[int]) -> int | None:
    """Return the one memory node whose bit is set in ``mask``, words of 64 bits; None for several or none."""
    nodes = [64 * place + bit for place, word in enumerate(mask) for bit in range(64) if word >> bit & 1]
    return nodes[0] if len(nodes) == 1 else None
