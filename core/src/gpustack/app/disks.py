"""Watches the room on the disks that GPUStack writes to, and says when there is none."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

from gpustack.kit.text import MIB, human_bytes

#: No event tells that a disk is full, so it is looked at, every so many seconds.
EVERY = 5.0
#: PostgreSQL asks for 16 MiB at a time.
FULL = 20 * MIB
_ROOM_AGAIN = 2 * FULL


class Disks:
    """``places`` are folders by what they are called; ``changed`` is called after each look while one is full."""

    def __init__(
        self, places: Mapping[str, Path], say: Callable[[str], None], changed: Callable[[], None]
    ) -> None:
        self._places = dict(places)
        self._say = say
        self._changed = changed
        self._full: dict[str, str] = {}

    @property
    def warnings(self) -> list[str]:
        """What is wrong now, a line each."""
        return list(self._full.values())

    async def run(self) -> NoReturn:
        """Look until cancelled."""
        while True:
            free = await asyncio.to_thread(self._free)
            self._note(free)
            await asyncio.sleep(EVERY)

    def _free(self) -> dict[str, int]:
        """Return the room at each place; of several on one disk only at the first, so that it is said once."""
        found: dict[str, int] = {}
        seen: set[int] = set()
        for what, place in self._places.items():
            try:
                disk, room = place.stat().st_dev, shutil.disk_usage(place).free
            except OSError:
                continue  # whoever uses the place says what is wrong with it
            if disk not in seen:
                found[what] = room
            seen.add(disk)
        return found

    def _note(self, free: Mapping[str, int]) -> None:
        before = bool(self._full)
        for what, room in free.items():
            place = self._places[what]
            if room < FULL:
                line = f"the disk of the {what} {place} is full ({human_bytes(room)} left); make room"
                if what not in self._full:
                    self._say(f"{line}: models that run go on, and nothing new can be stored")
                self._full[what] = line
            elif room > _ROOM_AGAIN and what in self._full:
                del self._full[what]
                self._say(f"the disk of the {what} {place} has room again")
        # Also when there is room again: what could not be written meanwhile is written then.
        if before or self._full:
            self._changed()
