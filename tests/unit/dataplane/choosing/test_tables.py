from __future__ import annotations

from typing import Any

from gpustack.dataplane.choosing import Hints, Outcome
from gpustack.plugin.routing import Route


def test_what_runs_is_still_counted_after_a_change_of_the_route(site: Any) -> None:
    site.serve(site.a_route(2))
    busy = site.pick(Hints(tokens=30_000))
    site.serve(site.a_route(3))
    leases = [site.pick() for _ in range(4)]

    assert all(lease.target.instance_id != busy.target.instance_id for lease in leases)


def test_a_request_that_holds_an_old_route_is_sent_by_the_new_one(site: Any) -> None:
    old = site.serve(site.a_route(2))
    site.pick()
    site.serve(site.a_route(1, first=9))
    lease = site.chooser.pick(old)

    assert lease is not None
    assert lease.target.instance_id == 9


def test_an_equal_route_in_another_object_changes_nothing(site: Any) -> None:
    site.serve(site.a_route(2))
    site.asked(1)
    known = site.chooser._routes["m"]
    site.serve(site.a_route(2))

    assert site.chooser._routes["m"] is known
    assert known.route is site.route


def test_an_instance_is_forgotten_when_no_route_leads_there_and_nothing_runs_there(site: Any) -> None:
    other = site.a_route(1, name="other", first=5)
    site.serve(site.a_route(2), other)
    lease = site.pick(without={2})
    site.serve(other)
    assert [each[0] for each in site.chooser.describe()] == [1]
    lease.done(Outcome.OK)
    site.serve(other)

    assert site.chooser.describe() == []


def test_an_instance_that_comes_back_while_something_runs_is_the_same(site: Any) -> None:
    site.serve(site.a_route(1))
    lease = site.pick()
    site.serve(site.a_route(1, name="other", first=5))
    site.serve(site.a_route(1))
    site.pick()
    ((_, requests, _, _),) = site.chooser.describe()
    lease.done(Outcome.OK)
    site.serve(site.a_route(1, name="other", first=5))

    assert requests == 2
    assert len(site.chooser.describe()) == 1


def test_a_route_that_was_removed_while_a_request_waited_still_answers(site: Any) -> None:
    gone = site.serve(site.a_route(2))
    site.serve(site.a_route(1, name="other", first=5))
    lease = site.chooser.pick(gone)
    assert lease is not None
    lease.done(Outcome.OK)
    site.serve(site.a_route(1, name="other", first=5))

    assert site.chooser.describe() == []


def test_routes_that_nobody_asks_for_take_no_memory(site: Any) -> None:
    routes: list[Route] = [site.a_route(8, name=f"m{number}", first=number * 8) for number in range(200)]
    site.serve(*routes)
    site.ask()

    assert len(site.chooser.describe()) == 8
