"""Timers: the earliest first, moved ones at their last time, dropped ones never."""

from hypothesis import given
from hypothesis import strategies as st

from gpustack.server.reconcile.timers import Timers

CALLS = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from(["put", "drop", "pop"]), st.integers(0, 20)),
    max_size=40,
)


@given(CALLS)
def test_it_agrees_with_a_dictionary(calls: list[tuple[str, str, int]]) -> None:
    timers, plain = Timers(), dict[str, int]()
    for key, call, time in calls:
        if call == "put":
            timers.put(key, time)
            plain[key] = time
        elif call == "drop":
            timers.drop(key)
            plain.pop(key, None)
        else:
            ready = {each for each, due in plain.items() if due <= time}
            assert set(timers.pop(time)) == ready
            plain = {each: due for each, due in plain.items() if each not in ready}
        if plain:
            following = timers.next()
            assert following is not None
            assert following <= min(plain.values())


def test_moving_a_time_later_again_and_again_keeps_the_queue_small() -> None:
    timers = Timers()
    for time in range(10_000):
        timers.put("worker", time)

    assert timers.next() == 0
    assert timers.pop(5000) == []
    assert timers.next() == 9999


def test_what_is_dropped_leaves_the_queue_long_before_its_time() -> None:
    timers = Timers()
    timers.put("worker", 5)
    for number in range(10_000):
        timers.put(number, 3600 + number)
        timers.drop(number)

    assert len(timers._heap) < 100
    assert timers.pop(5) == ["worker"]
    assert timers.pop(100_000) == []
