from __future__ import annotations

import logging
from typing import Any

import pytest

from gpustack.dataplane.choosing import Outcome


def ejected(site: Any) -> set[int]:
    return {number for number, _, _, state in site.chooser.describe() if state != "well"}


@pytest.mark.parametrize(
    ("outcome", "times"), [(Outcome.CONNECT_FAILED, 2), (Outcome.SERVER_ERROR, 5), (Outcome.TIMEOUT, 5)]
)
def test_failures_in_a_row_eject(site: Any, outcome: Outcome, times: int) -> None:
    site.serve(site.a_route(3))
    site.fail(1, outcome, times - 1)
    assert not ejected(site)
    site.fail(1, outcome, 1)

    assert ejected(site) == {1}
    assert 1 not in site.asked(12)
    assert site.chooser.ejections == 1


def test_a_success_between_them_breaks_the_row(site: Any) -> None:
    site.serve(site.a_route(3))
    for _ in range(5):
        site.fail(1, Outcome.SERVER_ERROR, 4)
        site.fail(1, Outcome.OK, 4)

    assert not ejected(site)


def test_a_high_share_of_failures_ejects_without_any_row(site: Any) -> None:
    site.serve(site.a_route(3))
    for _ in range(40):
        site.fail(1, Outcome.SERVER_ERROR, 2)
        site.fail(1, Outcome.OK, 1)

    assert site.chooser.ejections > 0


def test_clients_that_leave_say_nothing_of_an_engine(site: Any) -> None:
    site.serve(site.a_route(2))
    site.fail(1, Outcome.CLIENT_LEFT, 50)

    assert not ejected(site)


def test_after_the_cool_down_one_request_finds_out_whether_it_is_well(site: Any) -> None:
    site.serve(site.a_route(3))
    site.fail(1, Outcome.CONNECT_FAILED, 2)
    site.now += 3
    probe = site.pick()

    assert probe.target.instance_id == 1
    assert probe.probe
    assert all(site.pick().target.instance_id != 1 for _ in range(5))
    probe.done(Outcome.OK)
    assert not ejected(site)
    assert site.pick().target.instance_id == 1


def test_the_first_byte_of_a_long_answer_is_proof_enough(site: Any) -> None:
    site.serve(site.a_route(3))
    site.fail(1, Outcome.CONNECT_FAILED, 2)
    site.now += 3
    site.pick().first_byte()

    assert not ejected(site)


def test_a_client_that_leaves_a_probe_leaves_the_question_to_the_next(site: Any) -> None:
    site.serve(site.a_route(3))
    site.fail(1, Outcome.CONNECT_FAILED, 2)
    site.now += 3

    assert site.ask(Outcome.CLIENT_LEFT) == 1
    assert site.pick().target.instance_id == 1


def test_a_probe_that_ends_after_another_one_decided_leaves_the_next_ejection_alone(site: Any) -> None:
    site.serve(site.a_route(2))
    site.fail(1, Outcome.CONNECT_FAILED, 2)
    site.now += 3
    late = site.pick()
    # Nobody else was left for this one.
    site.ask(without={2})
    assert not ejected(site)
    late.done(Outcome.OK)
    site.fail(1, Outcome.CONNECT_FAILED, 2)
    site.now += 6

    assert site.pick().probe


def test_the_cool_down_grows_and_ends_at_half_a_minute(site: Any) -> None:
    site.serve(site.a_route(3))
    site.fail(1, Outcome.CONNECT_FAILED, 2)
    waits = []
    for _ in range(8):
        began = site.now
        while site.ask(Outcome.OK if site.now < began else Outcome.CONNECT_FAILED, without={2}) != 1:
            site.now += 0.25
            # The third is only there so that there is somebody else; it must stay well.
            site.fail(3, Outcome.OK, 1)
        waits.append(site.now - began)

    assert waits[0] == pytest.approx(2, rel=0.2)
    assert waits[1] == pytest.approx(4, rel=0.2)
    assert waits[2] == pytest.approx(8, rel=0.2)
    assert max(waits) <= 33.25


def test_a_success_of_a_request_from_before_the_ejection_proves_nothing(site: Any) -> None:
    site.serve(site.a_route(2))
    old = site.pick(without={2})
    site.fail(1, Outcome.SERVER_ERROR, 5)
    old.done(Outcome.OK)

    assert ejected(site) == {1}


def test_when_most_fail_all_that_listen_are_asked(site: Any) -> None:
    site.serve(site.a_route(4))
    for number in (1, 2, 3):
        site.fail(number, Outcome.SERVER_ERROR, 5)

    assert {site.pick().target.instance_id for _ in range(4)} == {1, 2, 3, 4}


def test_where_nobody_listens_nobody_is_asked_while_one_is_left(site: Any) -> None:
    site.serve(site.a_route(4))
    for number in (1, 2, 3):
        site.fail(number, Outcome.CONNECT_FAILED, 2)

    assert set(site.asked(8)) == {4}


def test_never_is_nobody_asked(site: Any) -> None:
    site.serve(site.a_route(3))
    for number in (1, 2, 3):
        site.fail(number, Outcome.CONNECT_FAILED, 2)
        site.chooser.report(number, healthy=False)

    assert site.pick().target.instance_id in {1, 2, 3}


def test_an_instance_that_its_worker_calls_ill_is_left_out_until_it_is_well(site: Any) -> None:
    site.serve(site.a_route(2))
    site.chooser.report(1, healthy=False)
    assert set(site.asked(4)) == {2}
    site.now += 1000
    assert set(site.asked(4)) == {2}
    site.chooser.report(1, healthy=True)

    assert set(site.asked(4)) == {1, 2}


def test_a_report_may_come_before_anybody_asked(site: Any) -> None:
    site.chooser.report(1, healthy=False)
    site.serve(site.a_route(2))

    assert set(site.asked(4)) == {2}


def test_a_report_of_health_makes_an_ejected_one_half_open(site: Any) -> None:
    site.serve(site.a_route(3))
    site.fail(1, Outcome.CONNECT_FAILED, 2)
    site.chooser.report(1, healthy=False)
    site.chooser.report(1, healthy=True)

    assert site.pick().target.instance_id == 1


def test_an_ejection_is_told_once_and_so_is_its_end(site: Any, caplog: pytest.LogCaptureFixture) -> None:
    site.serve(site.a_route(2))
    with caplog.at_level(logging.INFO):
        site.fail(1, Outcome.CONNECT_FAILED, 2)
        site.now += 3
        site.ask()

    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert caplog.records[0].getMessage() == "instance 1: left out for 2 s, for its connect failed"


def test_failures_on_one_route_are_known_on_all(site: Any) -> None:
    other = site.a_route(3, name="other")
    site.serve(site.a_route(3), other)
    site.fail(1, Outcome.CONNECT_FAILED, 2)
    site.route = other

    assert 1 not in site.asked(6)
