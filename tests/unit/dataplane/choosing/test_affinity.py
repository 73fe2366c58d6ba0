from __future__ import annotations

from typing import Any

from gpustack.dataplane.choosing import Hints, Outcome

#: Marks of 1,024, 1,536, 2,048 … bytes.
LONG = tuple(range(0x10001, 0x90001, 0x10001))


def test_a_conversation_stays_where_its_beginning_was_read(site: Any) -> None:
    site.serve(site.a_route(4))
    first = site.ask(hints=Hints(4000, LONG))

    assert site.asked(10, Hints(4000, LONG)) == {first: 10}
    assert len(site.asked(10)) == 4


def test_a_longer_conversation_follows_its_beginning_and_so_do_others_that_share_it(site: Any) -> None:
    site.serve(site.a_route(4))
    first = site.ask(hints=Hints(2000, LONG[:5]))
    second = site.ask(hints=Hints(4000, LONG))

    assert first == second
    assert site.ask(hints=Hints(3000, (*LONG[:5], 0xABC12345))) == first


def test_the_favourite_is_left_when_it_has_much_more_to_do_than_the_others(site: Any) -> None:
    site.serve(site.a_route(4))
    leases = [site.pick(Hints(4000, LONG)) for _ in range(40)]
    loads = sorted(tokens for _, _, tokens, _ in site.chooser.describe())

    assert {lease.target.instance_id for lease in leases} == {1, 2, 3, 4}
    assert loads[-1] <= 1.25 * sum(loads) / 4 + 4000 + 4 * 256


def test_a_difference_that_is_smaller_than_what_the_cache_saves_is_no_reason_to_leave(site: Any) -> None:
    site.serve(site.a_route(4))
    favourite = site.pick(Hints(8000, LONG))
    favourite.first_byte()

    assert site.pick(Hints(8000, LONG)).target is favourite.target
    assert site.pick(Hints(200, (0x777,))).target is not favourite.target


def test_a_prefix_that_all_have_leaves_the_load_to_decide(site: Any) -> None:
    site.serve(site.a_route(4))
    for instance in (1, 2, 3, 4):
        others = {1, 2, 3, 4} - {instance}
        site.ask(hints=Hints(4000, LONG), without=others)
    leases = [site.pick(Hints(4000, LONG)) for _ in range(8)]

    assert sorted(lease.target.instance_id for lease in leases) == [1, 1, 2, 2, 3, 3, 4, 4]


def test_what_was_served_long_ago_does_not_make_all_of_them_holders(site: Any) -> None:
    site.serve(site.a_route(4))
    for instance in (1, 2, 3, 4):
        site.ask(hints=Hints(4000, LONG), without={1, 2, 3, 4} - {instance})
    for _ in range(3):
        site.now += 40
        last = site.ask(hints=Hints(4000, LONG))

    assert site.asked(5, Hints(4000, LONG)) == {last: 5}


def test_a_session_stays_whatever_its_requests_begin_with(site: Any) -> None:
    site.serve(site.a_route(4))
    first = site.ask(hints=Hints(1000, (5, 6), session=99))

    assert {site.ask(hints=Hints(1000, (number, number + 1), session=99)) for number in range(9)} == {first}


def test_a_session_that_moved_once_is_not_everybodys(site: Any) -> None:
    site.serve(site.a_route(2))
    for instance in (1, 2):
        site.ask(hints=Hints(1000, session=99), without={3 - instance})

    assert site.asked(6, Hints(1000, session=99)) == {2: 6}


def test_marks_without_a_length_are_followed_too(site: Any) -> None:
    site.serve(site.a_route(4))
    first = site.ask(hints=Hints(0, LONG))

    assert site.asked(6, Hints(0, LONG)) == {first: 6}


def test_a_favourite_that_was_tried_or_is_gone_is_not_missed(site: Any) -> None:
    site.serve(site.a_route(3))
    first = site.ask(hints=Hints(4000, LONG))

    assert site.ask(hints=Hints(4000, LONG), without={first}) != first
    left = [target for target in site.route.targets if target.instance_id != first]
    site.serve(type(site.route)(name="m", created=0, targets=tuple(left)))
    assert site.ask(hints=Hints(4000, LONG)) != first


def test_a_favourite_that_fails_is_left(site: Any) -> None:
    site.serve(site.a_route(3))
    first = site.ask(hints=Hints(4000, LONG))
    site.fail(first, Outcome.CONNECT_FAILED, 2)

    assert first not in site.asked(10, Hints(4000, LONG))


def test_a_favourite_without_a_free_slot_is_left(site: Any) -> None:
    site.serve(site.a_route(2, slots=1))
    first = site.pick(Hints(8000, LONG))

    assert site.pick(Hints(8000, LONG)).target is not first.target


def test_a_new_prefix_goes_where_there_is_least_to_do(site: Any) -> None:
    site.serve(site.a_route(4))
    leases = [site.pick(Hints(1000, (number * 7919 + 1,))) for number in range(40)]

    assert all(requests == 10 for _, requests, _, _ in site.chooser.describe())
    assert len(leases) == 40
