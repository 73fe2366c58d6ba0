"""Which state of an instance may follow which, and what becomes of one that stays too long."""

import itertools

import pytest

from gpustack.lifecycle.instance import (
    HOLDS_CLAIM,
    ON_WORKER,
    STEPS,
    Deadlines,
    may_follow,
    overdue,
    time_allowed,
)
from gpustack.schemas import InstanceState as S

PLACED = ON_WORKER | {S.SCHEDULED, S.UNREACHABLE}


def test_every_state_has_its_steps() -> None:
    assert set(STEPS) == set(S)


def test_the_straight_way_is_allowed() -> None:
    way = [S.PENDING, S.ANALYZING, S.SCHEDULED, S.INITIALIZING, S.STARTING, S.RUNNING]

    assert all(may_follow(old, new) for old, new in itertools.pairwise(way))


@pytest.mark.parametrize("old", [S.PENDING, S.ANALYZING])
@pytest.mark.parametrize("new", sorted(ON_WORKER - {S.ERROR}))
def test_what_is_not_placed_is_not_on_a_worker(old: S, new: S) -> None:
    assert not may_follow(old, new)


@pytest.mark.parametrize("old", sorted(PLACED))
@pytest.mark.parametrize("new", sorted(ON_WORKER))
def test_reports_may_be_skipped(old: S, new: S) -> None:
    assert may_follow(old, new)


def test_a_running_instance_is_not_placed_anew() -> None:
    assert not may_follow(S.RUNNING, S.SCHEDULED)
    assert not may_follow(S.RUNNING, S.PENDING)


def test_whatever_is_placed_holds_its_claim() -> None:
    assert HOLDS_CLAIM == PLACED


def test_every_time_limit_has_a_consequence_that_is_allowed() -> None:
    for state in S:
        step = overdue(state, "w1", 60)
        if time_allowed(state, Deadlines()) is None:
            assert step is None
        elif state is not S.PENDING:
            assert step is not None
            assert may_follow(state, step.state)
            assert "60 s" in step.message
            assert "\n" not in step.message


def test_loading_may_last_longer_the_more_there_is_to_load() -> None:
    limits = Deadlines(starting=100, load_rate=10)

    assert time_allowed(S.STARTING, limits, weight_bytes=50) == 105
