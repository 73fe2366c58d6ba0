"""The pure decision: fast up, slow down, never outside the bounds, and at rest while the load is."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpustack.server.reconcile.autoscale import Demand, History, Policy, decide

Step = tuple[float, Demand]


def played(
    policy: Policy, steps: Iterable[Step], *, replicas: int = 1, until: float = math.inf
) -> list[tuple[float, int]]:
    """Play demands, each from its time on, asking again whenever that was said; return each change with its time."""
    history, now, changes = History(0.0), 0.0, []
    coming = sorted(steps, key=lambda step: step[0])
    while True:
        while coming and coming[0][0] <= now:
            history.note(coming.pop(0)[1], policy, now)
        history.note(history.demand, policy, now)
        for _ in range(3):
            decision = decide(policy, history, replicas=replicas, now=now)
            if decision.replicas == replicas:
                break
            replicas = decision.replicas
            changes.append((now, replicas))
            history.woken = False
        else:
            raise AssertionError(f"no rest at {now}: {changes[-3:]}")
        times = [decision.again, coming[0][0] if coming else None]
        following = min((each for each in times if each is not None), default=None)
        if following is None or following > until:
            return changes
        assert following > now, "it asks to be asked at once"
        now = following


def busy(outstanding: int, caches: float = 0.0) -> Demand:
    return Demand(outstanding=outstanding, kv_caches=caches)


FIXED = Policy(least=1, most=10, outstanding=4, up=5, down=300)


def test_more_come_once_they_have_been_needed_for_the_time_and_not_before() -> None:
    assert played(FIXED, [(10, busy(12))]) == [(15.0, 3)]


def test_a_peak_shorter_than_that_changes_nothing() -> None:
    assert played(FIXED, [(10, busy(40)), (14, busy(2))]) == []


def test_of_a_load_that_rises_as_many_come_as_were_needed_all_the_time() -> None:
    assert played(FIXED, [(10, busy(8)), (13, busy(16))]) == [(15.0, 2), (18.0, 4)]


def test_fewer_stay_once_they_have_been_enough_for_long() -> None:
    assert played(FIXED, [(10, busy(12)), (100, busy(1))], replicas=3) == [(400.0, 1)]


def test_what_was_asked_before_this_process_began_is_not_guessed() -> None:
    assert played(FIXED, [], replicas=5) == [(300.0, 1)]


def test_a_peak_begins_the_wait_for_fewer_anew() -> None:
    steps = [(10, busy(12)), (100, busy(1)), (390, busy(12)), (391, busy(1))]
    assert played(FIXED, steps, replicas=3) == [(691.0, 1)]


def test_full_caches_make_more_though_requests_are_few() -> None:
    policy = Policy(least=1, most=4, outstanding=100, kv_cache=0.8, up=5)
    assert played(policy, [(10, busy(1, caches=0.95))], until=100) == [(15.0, 2)]
    assert played(policy, [(10, busy(1, caches=0.75))], until=100) == []


def test_a_target_of_none_counts_nothing() -> None:
    policy = Policy(least=1, most=4, outstanding=0, kv_cache=0.8, up=0)
    assert played(policy, [(10, busy(1000))], until=100) == []


SLEEPS = Policy(least=0, most=4, outstanding=4, up=5, down=300, idle=60)


def test_the_last_one_ends_when_nobody_has_asked_for_the_time() -> None:
    assert played(SLEEPS, [(10, busy(1)), (20, busy(0))]) == [(80.0, 0)]


def test_somebody_who_waits_starts_as_many_as_are_needed_at_once() -> None:
    assert played(SLEEPS, [(10, busy(9))], replicas=0, until=20) == [(10.0, 3)]


def test_a_wake_up_starts_one_whatever_the_numbers_say_yet() -> None:
    history = History(0.0)
    assert decide(SLEEPS, history, replicas=0, now=1.0).replicas == 0
    history.woken = True
    assert decide(SLEEPS, history, replicas=0, now=1.0).replicas == 1


def test_a_model_that_is_asked_now_and_then_stays() -> None:
    history = History(0.0)
    for now in range(0, 1000, 50):
        history.active(float(now))  # a request so short that nobody saw it
        history.note(busy(0), SLEEPS, float(now))
        assert decide(SLEEPS, history, replicas=1, now=float(now)).replicas == 1


# Whatever the load ----------------------------------------------------------------------------------------

policies = st.builds(
    lambda least, more, **other: Policy(least=least, most=max(1, least + more), **other),
    st.integers(0, 5),
    st.integers(0, 20),
    outstanding=st.sampled_from([0.5, 1, 3, 4, 7.5, 64]),
    kv_cache=st.sampled_from([0, 0.5, 0.8, 1.0]),
    up=st.sampled_from([0, 1, 5, 30]),
    down=st.sampled_from([0, 1, 60, 300]),
    idle=st.sampled_from([1, 60, 600]),
)
demands = st.builds(
    lambda outstanding, caches: Demand(outstanding=outstanding, kv_caches=caches),
    st.integers(0, 300),
    st.floats(0, 30, allow_nan=False),
)
loads = st.lists(st.tuples(st.floats(0, 2000, allow_nan=False), demands), max_size=30)


@given(policy=policies, steps=loads, begin=st.integers(0, 30))
def test_it_never_leaves_its_bounds(policy: Policy, steps: list[Step], begin: int) -> None:
    begin = min(max(begin, policy.least), policy.most)
    for _, replicas in played(policy, steps, replicas=begin, until=5000):
        assert policy.least <= replicas <= policy.most


@given(policy=policies, demand=demands, begin=st.integers(0, 30))
def test_a_constant_load_is_followed_once_and_then_left_alone(
    policy: Policy, demand: Demand, begin: int
) -> None:
    begin = min(max(begin, policy.least), policy.most)
    changes = played(policy, [(0.0, demand)], replicas=begin, until=100_000)
    assert len(changes) <= 2  # a model that is to sleep may lose all but one first
    numbers = [begin, *(number for _, number in changes)]
    assert numbers in (sorted(numbers), sorted(numbers, reverse=True)), "there and back"
    if changes:
        assert changes[-1][0] <= max(policy.up, policy.down, policy.idle) + 1e-6


@given(
    count=st.integers(1, 20),
    each=st.integers(1, 50),
    parts=st.lists(st.floats(0.0, 1.0), min_size=1, max_size=60),
    up=st.sampled_from([0.0, 5.0]),
    down=st.sampled_from([0.0, 60.0]),
)
def test_a_load_that_trembles_within_the_slack_moves_nothing(
    count: int, each: int, parts: list[float], up: float, down: float
) -> None:
    """Between what one fewer could do with a tenth to spare and what these can do, they stay."""
    policy = Policy(least=1, most=40, outstanding=each, up=up, down=down)
    low, high = math.floor((count - 1) * each * 0.9) + 1, count * each
    steps = [(float(at), busy(low + math.floor(part * (high - low)))) for at, part in enumerate(parts)]
    assert played(policy, steps, replicas=count, until=len(parts) + 1000) == []


@given(policy=policies.filter(lambda each: each.outstanding > 0), demand=demands)
def test_enough_are_there_as_soon_as_the_time_to_grow_is_over(policy: Policy, demand: Demand) -> None:
    history = History(0.0)
    history.note(demand, policy, 10.0)
    found = decide(policy, history, replicas=max(1, policy.least), now=10.0 + policy.up).replicas
    needed = math.ceil(demand.outstanding / policy.outstanding - 1e-9)
    assert found >= min(needed, policy.most) or demand.outstanding == 0


@pytest.mark.parametrize("seconds", [1, 100, 10_000])
def test_what_is_remembered_has_a_bound(seconds: int) -> None:
    history = History(0.0)
    policy = Policy(least=1, most=1000, outstanding=1, up=5, down=60)
    for now in range(seconds):
        history.note(busy(now % 100), policy, float(now))
    assert len(history._steps) <= 62
