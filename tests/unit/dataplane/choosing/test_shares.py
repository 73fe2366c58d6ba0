from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest

from gpustack.dataplane.choosing import Hints, Outcome
from gpustack.plugin.routing import Route


@pytest.mark.parametrize("weights", [(90, 10), (1, 2, 3), (97, 1, 1, 1), (50, 25, 25)])
def test_shares_are_exact_whatever_there_is_to_do(site: Any, weights: tuple[int, ...]) -> None:
    site.serve(site.a_route(len(weights), weights=weights))
    total = sum(weights)
    leases = [site.pick(Hints(tokens=number % 7 * 500)) for number in range(total * 4)]
    found = Counter(lease.target.instance_id for lease in leases)

    for number, weight in enumerate(weights, 1):
        assert found[number] == pytest.approx(4 * weight, abs=1)


def test_targets_of_one_model_and_weight_share_by_load(site: Any) -> None:
    old = site.a_route(3, weights=(30, 30, 30), model="old").targets
    new = site.a_route(1, weights=(10,), first=4, model="new").targets
    site.serve(Route(name="m", created=0, targets=(*old, *new)))

    found = site.asked(100)

    assert found[4] == 10
    assert all(found[number] == pytest.approx(30, abs=1) for number in (1, 2, 3))


def test_who_has_no_weight_gets_nothing_that_another_can_take(site: Any) -> None:
    site.serve(site.a_route(3, weights=(100, 100, 0)))

    assert set(site.asked(40)) == {1, 2}
    assert site.ask(without={1}) == 2
    assert site.ask(without={1, 2}) == 3
    for number in (1, 2):
        site.fail(number, Outcome.CONNECT_FAILED, 2)
    assert site.ask() == 3


def test_where_nobody_has_weight_all_are_asked(site: Any) -> None:
    site.serve(site.a_route(2, weights=(0, 0)))
    assert set(site.asked(4)) == {1, 2}

    one = site.a_route(1, weights=(0,), model="one").targets
    two = site.a_route(1, weights=(0,), first=2, model="two").targets
    site.serve(Route(name="m", created=0, targets=(*one, *two)))
    assert set(site.asked(4)) == {1, 2}


def test_a_conversation_stays_with_its_group_but_shares_hold(site: Any) -> None:
    site.serve(site.a_route(2, weights=(90, 10)))
    conversations = [Hints(4000, (number * 65537 + 1, number * 65537 + 2)) for number in range(50)]
    where: dict[int, list[int]] = {}
    for _ in range(40):
        for number, hints in enumerate(conversations):
            where.setdefault(number, []).append(site.ask(hints=hints))
    total = Counter(instance for each in where.values() for instance in each)

    assert total[2] == pytest.approx(200, abs=20)
    moves = sum(one != two for each in where.values() for one, two in itertools.pairwise(each))
    assert moves < 40


def test_a_group_that_was_away_does_not_make_up_for_it(site: Any) -> None:
    site.serve(site.a_route(2, weights=(50, 50)))
    site.fail(1, Outcome.CONNECT_FAILED, 2)
    site.asked(100)
    site.now += 3

    assert site.asked(20)[2] == pytest.approx(10, abs=2)


def test_shares_survive_a_change_of_the_route(site: Any) -> None:
    found: Counter[int] = Counter()
    for _ in range(50):
        site.serve(site.a_route(2, weights=(90, 10)))
        site.serve(Route(name="m", created=site.version, targets=site.route.targets))
        found += site.asked(2)

    assert found == {1: 90, 2: 10}
