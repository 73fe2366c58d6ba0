from __future__ import annotations

from collections import Counter
from contextlib import ExitStack, suppress

from gpustack.dataplane import Balancer, Target


def targets(count: int) -> tuple[Target, ...]:
    return tuple(Target(instance_id=number, host="h", port=number) for number in range(1, count + 1))


def _send(balancer: Balancer, among: tuple[Target, ...]) -> int:
    target = balancer.choose(among)
    assert target is not None
    with balancer.lease(target):
        return target.instance_id


def test_equals_take_turns() -> None:
    balancer = Balancer()

    assert [_send(balancer, targets(3)) for _ in range(6)] == [1, 2, 3, 1, 2, 3]


def test_a_change_of_the_table_does_not_restart_the_turns() -> None:
    balancer = Balancer()
    sent = Counter(_send(balancer, targets(3 if number % 2 else 4)[:3]) for number in range(30))

    assert set(sent.values()) == {10}


def test_the_one_with_the_fewest_outstanding_is_chosen() -> None:
    balancer = Balancer()
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(balancer.lease(targets(2)[0]))
        stack.enter_context(balancer.lease(targets(2)[1]))

        assert [_send(balancer, targets(2)) for _ in range(2)] == [2, 2]

    assert sorted(_send(balancer, targets(2)) for _ in range(2)) == [1, 2]


def test_a_request_that_fails_is_no_longer_counted() -> None:
    balancer = Balancer()
    with suppress(ZeroDivisionError), balancer.lease(targets(2)[0]):
        raise ZeroDivisionError

    assert sorted(_send(balancer, targets(2)) for _ in range(2)) == [1, 2]


def test_those_that_failed_are_left_out_and_nothing_may_be_left() -> None:
    balancer = Balancer()
    chosen = balancer.choose(targets(2), without={1})

    assert chosen is not None
    assert chosen.instance_id == 2
    assert balancer.choose(targets(2), without={1, 2}) is None
    assert balancer.choose(()) is None
