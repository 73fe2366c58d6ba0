"""Two processes are killed at the same moment, every pair of them, under load."""

from __future__ import annotations

import itertools

import pytest

from support.house import House
from support.ordeal import ordeal

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("e2e-kill-pairs")]

VICTIMS = ("server", "worker", "engine", "postgres", "door", "supervisor")


@pytest.mark.timeout(900)
def test_nothing_fails_but_what_was_in_flight_on_the_killed(house: House, key: str) -> None:
    with ordeal(house, key) as running:
        for pair in itertools.combinations(VICTIMS, 2):
            running.kill(*pair)
    house.stop()
