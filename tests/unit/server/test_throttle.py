from __future__ import annotations

import pytest

from gpustack.kit.errors import Throttled
from gpustack.server.auth.routes import is_loopback
from gpustack.server.auth.throttle import Throttle


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def _fail(throttle: Throttle, times: int) -> None:
    for _ in range(times):
        throttle.begin("key")


def test_the_wait_doubles_after_the_free_attempts() -> None:
    clock = Clock()
    throttle = Throttle(free=2, first=1, limit=100, clock=clock)
    _fail(throttle, 3)
    waits = []
    for _ in range(4):
        with pytest.raises(Throttled) as caught:
            throttle.begin("key")
        waits.append(caught.value.retry_after)
        clock.now += waits[-1]
        throttle.begin("key")

    assert waits == [1, 2, 4, 8]


def test_attempts_while_blocked_do_not_lengthen_the_wait() -> None:
    throttle = Throttle(free=0, first=10, clock=Clock())
    _fail(throttle, 1)
    for _ in range(5):
        with pytest.raises(Throttled) as caught:
            throttle.begin("key")

    assert caught.value.retry_after == 10


def test_others_are_not_blocked_and_success_forgets() -> None:
    throttle = Throttle(free=1, clock=Clock())
    _fail(throttle, 1)
    throttle.begin("other")
    throttle.succeeded("key")
    _fail(throttle, 1)


def test_an_hour_forgets() -> None:
    clock = Clock()
    throttle = Throttle(free=1, memory=3600, clock=clock)
    _fail(throttle, 2)
    clock.now = 3601
    _fail(throttle, 1)


def test_memory_is_bounded() -> None:
    throttle = Throttle(size=10)
    for number in range(1000):
        throttle.begin(number)

    assert len(throttle._records) == 10


def test_an_excused_attempt_does_not_count() -> None:
    throttle = Throttle(free=1, clock=Clock())
    for _ in range(20):
        throttle.begin("address")
        throttle.excuse("address")


def test_only_failures_count_and_only_of_the_kind_that_is_meant() -> None:
    throttle = Throttle(free=1, clock=Clock())
    for _ in range(20):
        with pytest.raises(ZeroDivisionError), throttle.attempt("key", ValueError):
            raise ZeroDivisionError
        with throttle.attempt("key", ValueError):
            pass
    for _ in range(2):
        with pytest.raises(ValueError, match="wrong"), throttle.attempt("key", ValueError):
            raise ValueError("wrong")

    with pytest.raises(Throttled), throttle.attempt("key", ValueError):
        raise AssertionError("it is blocked")


@pytest.mark.parametrize(
    ("address", "here"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("10.0.0.1", False), ("", False)],
)
def test_who_is_on_this_machine(address: str, here: bool) -> None:
    assert is_loopback(address) is here
