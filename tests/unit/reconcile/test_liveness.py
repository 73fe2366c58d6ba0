"""Who counts as alive: fleets on a clock of their own, with cables that are cut and healed."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpustack.lifecycle.suspicion import Rhythm
from gpustack.schemas import Heartbeat, InstanceState, WorkerState
from gpustack.server.reconcile import clock
from gpustack.server.reconcile.actions import LoseWorker, Move, Restart, ReturnWorker
from gpustack.server.reconcile.decide import decide
from gpustack.server.reconcile.state import State
from support.reconcile import a_model, a_state, a_worker, an_instance

S = InstanceState


def running(number: int) -> object:
    return an_instance(number, S.RUNNING, worker_id=number, port=40000)


@dataclass
class Fleet:
    """Workers that beat every 10 s, each with a running instance, and what the server makes of them.

    ``heard`` says whether a sign of life of a worker at a time arrives. What was lost and returned is in ``lost`` and
    ``returned`` with its time, what was placed anew in ``moved``.
    """

    size: int
    heard: Callable[[int, float], bool]
    jitter: float = 0.5
    lost: list[tuple[int, float]] = field(default_factory=list)
    returned: list[tuple[int, float]] = field(default_factory=list)
    moved: list[int] = field(default_factory=list)
    moved_at: dict[int, float] = field(default_factory=dict)
    said: set[str] = field(default_factory=set)

    def run(self, seconds: int) -> Fleet:
        chance = random.Random(1)
        ids = range(1, self.size + 1)
        state = a_state(
            models=[a_model(replicas=self.size, ready_replicas=self.size)],
            workers=[a_worker(number) for number in ids],
            instances=[running(number) for number in ids],
        )
        beats = {number: chance.uniform(0, 10) for number in ids}
        now = 0.0
        while now < seconds:
            now += 0.5
            for number in ids:
                if beats[number] <= now:
                    beats[number] = now + 10 + chance.uniform(-self.jitter, self.jitter)
                    if self.heard(number, now):
                        self._hear(state, number, now)
            self._act(state, now)
        return self

    def _hear(self, state: State, number: int, now: float) -> None:
        state.heard(number, Heartbeat(), now)
        instance = state.instances.get(number)
        if instance is not None and instance.state is S.UNREACHABLE:
            # A worker reports how things stand when it is heard again.
            state.put_instance(instance.model_copy(update={"state": S.RUNNING}), now)

    def _act(self, state: State, now: float) -> None:
        self.said.add(clock.silence_of_most(state, now))
        for action in decide(state, now):
            match action:
                case LoseWorker(number, _, instances):
                    self.lost.append((number, now))
                    state.put_worker(a_worker(number, state=WorkerState.UNREACHABLE), now)
                    for each in instances:
                        gone = state.instances[each].model_copy(update={"state": S.UNREACHABLE})
                        state.put_instance(gone, now)
                case ReturnWorker(number):
                    self.returned.append((number, now))
                    state.put_worker(a_worker(number), now)
                case Restart(number) | Move(number):
                    self.moved.append(number)
                    self.moved_at[number] = now
                    state.drop_instance(number)


def cut(which: set[int], begin: float, end: float) -> Callable[[int, float], bool]:
    return lambda number, now: number not in which or not begin <= now < end


class TestOneWorker:
    def test_a_cut_of_5_s_is_not_seen(self) -> None:
        for begin in range(100, 112):
            fleet = Fleet(3, cut({1}, begin, begin + 5)).run(200)
            assert fleet.lost == []

    def test_a_cut_of_60_s_is_seen_within_20_and_moves_nothing(self) -> None:
        for begin in range(100, 110):
            fleet = Fleet(3, cut({1}, begin, begin + 60)).run(300)
            [(number, when)] = fleet.lost
            assert number == 1
            assert begin + 9 <= when <= begin + 20.5
            [(number, back)] = fleet.returned
            assert begin + 60 <= back <= begin + 71
            assert fleet.moved == []

    def test_after_10_minutes_its_instances_are_elsewhere(self) -> None:
        fleet = Fleet(3, cut({1}, 100, 700)).run(900)

        assert [number for number, _ in fleet.lost] == [1]
        assert [number for number, _ in fleet.returned] == [1]
        assert fleet.moved == [1]
        assert 60 <= fleet.moved_at[1] - fleet.lost[0][1] <= 61

    @pytest.mark.parametrize("jitter", [0.0, 4.0, 9.0])
    def test_one_that_is_irregular_is_seen_as_early_and_is_not_lost_while_it_speaks(
        self, jitter: float
    ) -> None:
        for begin in range(300, 310, 4):
            fleet = Fleet(3, cut({1}, begin, begin + 600), jitter=jitter).run(begin + 40)
            [(number, when)] = fleet.lost
            assert number == 1
            assert begin <= when <= begin + 20.5

    def test_one_whose_signs_of_life_are_sometimes_lost_is_none_the_less_seen_in_time(self) -> None:
        chance = random.Random(2)
        lossy = Fleet(3, lambda number, now: now < 1000 and (number != 1 or chance.random() < 0.7)).run(1060)

        assert max(when for number, when in lossy.lost if number == 1) <= 1020.5


class TestMostOfAFleet:
    @pytest.mark.parametrize("cut_off", [11, 15, 20])
    def test_nobody_is_given_up_when_most_fall_silent(self, cut_off: int) -> None:
        fleet = Fleet(20, cut(set(range(1, cut_off + 1)), 100, 700)).run(900)

        assert fleet.lost == []
        assert fleet.moved == []
        [_, line] = sorted(fleet.said, key=len)[:2]
        assert "of 20 workers fell silent within 60 s" in line

    def test_nothing_moves_when_they_fall_silent_one_by_one_within_a_minute(self) -> None:
        fleet = Fleet(20, lambda number, now: number > 12 or not 100 + 4 * number <= now < 700).run(900)

        assert fleet.lost != []
        assert fleet.moved == []

    def test_it_is_not_said_any_more_when_they_are_back(self) -> None:
        fleet = Fleet(20, cut(set(range(1, 21)), 100, 200))
        fleet.run(150)
        assert fleet.said != {""}

        fleet = Fleet(20, lambda _number, _now: True)
        assert fleet.run(300).said == {""}

    @pytest.mark.parametrize(("size", "silent"), [(20, 9), (9, 9)])
    def test_fewer_are_lost_one_by_one(self, size: int, silent: int) -> None:
        fleet = Fleet(size, cut(set(range(1, silent + 1)), 100, 200)).run(300)

        assert {number for number, _ in fleet.lost} == set(range(1, silent + 1))
        assert all(when <= 120.5 for _, when in fleet.lost)
        assert {number for number, _ in fleet.returned} == set(range(1, silent + 1))

    def test_those_that_die_one_after_the_other_are_lost(self) -> None:
        fleet = Fleet(12, lambda number, now: now < 100 * number).run(1400)

        assert [number for number, _ in sorted(fleet.lost, key=lambda each: each[1])] == list(range(1, 13))


gaps = st.lists(st.floats(0, 1e6), max_size=50)


@given(gaps, st.floats(0.01, 1000))
@settings(max_examples=200)
def test_a_sign_of_life_is_missing_at_the_latest_when_the_worker_is_lost(
    past: list[float], longest: float
) -> None:
    rhythm = Rhythm()
    for each in past:
        rhythm.note(each, longest=longest)

    assert 0 < rhythm.late(longest) <= longest
