from __future__ import annotations

from typing import Any

import pytest

from gpustack.dataplane.choosing import Hints, Outcome


def test_who_is_idle_takes_turns(site: Any) -> None:
    site.serve(site.a_route(3))

    assert site.asked(9) == {1: 3, 2: 3, 3: 3}


def test_the_one_with_the_fewest_tokens_in_flight_is_asked(site: Any) -> None:
    site.serve(site.a_route(2))
    long = site.pick(Hints(tokens=20_000))

    for _ in range(5):
        assert site.pick(Hints(tokens=10)).target is not long.target


def test_requests_decide_among_those_with_equal_tokens(site: Any) -> None:
    site.serve(site.a_route(2))
    one = site.pick(Hints(tokens=2000, max_tokens=1))
    two = [site.pick(Hints(tokens=998, max_tokens=1)) for _ in range(2)]
    for each in (one, *two):
        each.progress(0)

    assert {lease.target for lease in two} == {site.route.targets[0], site.route.targets[1]} - {one.target}
    assert site.pick().target is one.target


def test_a_prompt_that_was_read_counts_no_longer(site: Any) -> None:
    site.serve(site.a_route(2))
    first = site.pick(Hints(tokens=20_000))
    site.pick(Hints(tokens=1000))
    first.first_byte()
    first.first_byte()

    assert site.pick().target is first.target


def test_an_answer_counts_less_as_it_grows(site: Any) -> None:
    site.serve(site.a_route(2))
    first, second = site.pick(), site.pick()
    second.progress(100)

    assert site.pick().target is second.target
    assert first.target is not second.target


def test_a_route_with_long_answers_learns_so(site: Any) -> None:
    site.serve(site.a_route(1))
    before = _tokens(site)
    for _ in range(100):
        site.pick().done(Outcome.OK, 4000)

    assert _tokens(site) > 5 * before


def _tokens(site: Any) -> int:
    lease = site.pick()
    ((_, _, tokens, _),) = site.chooser.describe()
    lease.done(Outcome.OK)
    return int(tokens)


@pytest.mark.parametrize("outcome", list(Outcome))
def test_nothing_is_counted_of_a_request_that_is_over(site: Any, outcome: Outcome) -> None:
    site.serve(site.a_route(1))
    leases = [site.pick(Hints(tokens=number * 100, max_tokens=number)) for number in range(5)]
    leases[0].first_byte()
    leases[1].progress(10)
    for lease in leases:
        lease.done(outcome, 17)
        lease.done(outcome, 17)
        lease.first_byte()
        lease.progress(200)

    assert [each[1:3] for each in site.chooser.describe()] == [(0, 0)]


def test_those_that_were_tried_are_left_out_and_nobody_may_be_left(site: Any) -> None:
    site.serve(site.a_route(3))

    assert {site.ask(without={1}) for _ in range(6)} == {2, 3}
    assert site.chooser.pick(site.route, without={1, 2, 3}) is None
    assert site.chooser.pick(site.a_route(0, name="none")) is None


def test_an_engine_without_a_free_slot_is_asked_after_those_that_have_one(site: Any) -> None:
    site.serve(site.a_route(2, slots=2))
    long = [site.pick(Hints(tokens=50_000)), site.pick(Hints(tokens=10))]
    short = [site.pick(Hints(tokens=10)), site.pick(Hints(tokens=10))]

    assert [each.target for each in short] == [long[1].target, long[0].target]


def test_of_very_many_targets_two_are_compared(site: Any) -> None:
    site.serve(site.a_route(64))
    leases = [site.pick() for _ in range(640)]
    counts = [requests for _, requests, _, _ in site.chooser.describe()]

    assert len(leases) == sum(counts)
    assert max(counts) <= 14


def test_a_new_instance_gets_little_at_first_and_its_share_in_the_end(site: Any) -> None:
    old = site.a_route(3).targets
    new = site.a_route(1, first=4, ready_at=site.now).targets
    site.serve(site.a_route(4))
    route = type(site.route)(name="m", created=0, targets=(*old, *new))
    site.serve(route)
    shares = []
    for _ in range(2):
        leases = [site.pick() for _ in range(80)]
        shares.append(sum(lease.target.instance_id == 4 for lease in leases))
        for lease in leases:
            lease.done(Outcome.OK)
        site.now += 31

    assert shares[0] < 8
    assert shares[1] == 20


def test_a_machine_whose_clock_is_ahead_does_not_start_slowly_for_ever(site: Any) -> None:
    route = site.serve(site.a_route(2))
    new = site.a_route(1, first=2, ready_at=site.now + 86400).targets
    site.serve(type(route)(name="m", created=0, targets=(route.targets[0], *new)))
    site.ask()
    site.now += 20
    site.serve(type(route)(name="m", created=1, targets=(route.targets[0], *new)))
    site.now += 11
    leases = [site.pick() for _ in range(10)]

    assert sum(lease.target.instance_id == 2 for lease in leases) == 5
