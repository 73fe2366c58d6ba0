"""Instances are exchanged, and taken away, without a gap: what is decided, step by step and to the end."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpustack.kit.text import GIB
from gpustack.plugin import ResourceClaim
from gpustack.schemas import Claim, InstanceState, WorkerState
from gpustack.schemas.models import Rollout
from gpustack.server.reconcile.actions import (
    Action,
    Analyze,
    Ask,
    Create,
    Drain,
    Finish,
    Park,
    Restart,
    Schedule,
    SetCategories,
    SetReady,
)
from gpustack.server.reconcile.decide import decide
from gpustack.server.reconcile.questions import Answer
from gpustack.server.reconcile.state import State
from support.reconcile import NOW, a_file, a_model, a_state, a_worker, an_instance, described, running

S = InstanceState
NEW = ["--ctx-size=64"]
CHANGED = "model tiny was changed"


def drained(actions: list[Action]) -> list[int]:
    return [each.instance_id for each in actions if isinstance(each, Drain)]


def created(actions: list[Action]) -> int:
    return sum(each.count for each in actions if isinstance(each, Create))


def draining(instance: Any, since: datetime = NOW, seconds: int = 120) -> Any:
    return instance.model_copy(update={"draining_since": since, "drain_seconds": seconds})


class World:
    """Carries decisions out on the state alone. ``runs`` tells whether an engine with these parameters comes up."""

    def __init__(
        self,
        *,
        replicas: int = 2,
        rollout: Rollout | None = None,
        ram: int = 400,
        workers: int = 1,
        claim: int = 4,
        runs: Callable[[list[str]], bool] = lambda _parameters: True,
    ) -> None:
        model = a_model(replicas=replicas, rollout=rollout or Rollout())
        machines = [a_worker(number + 1, ram=ram) for number in range(workers)]
        files = [a_file(number + 1) for number in range(workers)]
        self.state: State = a_state(models=[model], workers=machines, files=files)
        self.claim = ResourceClaim(ram=claim * GIB)
        self.runs = runs
        self.now = 1.0
        self.fewest = 0
        self.most = 0
        self.said: list[str] = []
        self.count = 0

    def edit(self, **changes: Any) -> None:
        self.state.put_model(described(self.state.models[1], **changes))

    @property
    def serving(self) -> list[Any]:
        rows = self.state.instances_of(1)
        return [each for each in rows if each.state is S.RUNNING and each.draining_since is None]

    def settle(self) -> None:
        """Decide and act until nothing is left to do, then let engines and drains go one step on; until all rests."""
        self.fewest, self.most = len(self.serving), len(self.state.instances)
        for _ in range(300):
            acted = self.act()
            self.fewest = min(self.fewest, len(self.serving))
            self.most = max(self.most, len(self.state.instances))
            if not self.advance() and not acted:
                return
        raise AssertionError("it never rests")

    def act(self) -> bool:
        acted = False
        for _ in range(100):
            self.now += 0.01
            self.state.alive(1, self.now)
            actions = decide(self.state, self.now)
            if not actions:
                return acted
            acted = True
            for action in actions:
                self.do(action)
        raise AssertionError(f"decisions do not settle: {actions}")

    def do(self, action: Action) -> None:
        state = self.state
        match action:
            case Create(_, count):
                for _ in range(count):
                    self.count += 1
                    digest = state.models[1].spec_digest
                    state.put_instance(an_instance(self.count, spec_digest=digest), self.now)
            case Drain(number):
                row = state.instances[number]
                if row.worker_id is None:
                    state.drop_instance(number)
                else:
                    state.put_instance(draining(row), self.now)
                if action.for_instance is not None:
                    state.notes[action.for_instance].parked = None
            case Analyze(number, workers):
                self.change(number, state=S.ANALYZING)
                state.notes[number].asked.update(workers)
                for request in action.request:
                    state.put_file(a_file(request))
            case Ask(questions):
                for question in questions:
                    state.answers[question] = Answer(claim=self.claim)
            case Schedule(placed, _, spec):
                self.change(
                    placed.instance_id,
                    state=S.SCHEDULED,
                    worker_id=placed.worker_id,
                    computed_resource_claim=Claim(ram=placed.ram),
                    spec_digest=spec,
                )
            case Park(number, message):
                self.said.append(message)
                self.change(number, state=S.PENDING, state_message=message)
                state.park(number, action.refusal, self.now, action.room_of)
            case SetReady(number, count):
                state.put_model(state.models[number].model_copy(update={"ready_replicas": count}))
            case SetCategories() | Finish() | Restart():
                pytest.fail(f"not expected: {action}")

    def change(self, number: int, **columns: Any) -> None:
        row = self.state.instances[number]
        self.state.put_instance(row.model_copy(update=columns), self.now)

    def advance(self) -> bool:
        """One placed engine starts or fails; one that drains is gone."""
        for row in self.state.instances_of(1):
            if row.draining_since is not None:
                self.state.drop_instance(row.id)
                return True
        model = self.state.models[1]
        for row in self.state.instances_of(1):
            if row.state is S.SCHEDULED:
                good = row.spec_digest != model.spec_digest or self.runs(model.backend_parameters)
                self.change(row.id, state=S.RUNNING if good else S.ERROR)
                return True
        return False

    @property
    def current(self) -> list[bool]:
        return [not self.state.outdated(each) for each in self.serving]


class TestARoll:
    def test_a_new_one_comes_first_and_an_old_one_goes_when_it_runs(self) -> None:
        old = a_model(replicas=2, ready_replicas=2)
        state = a_state(models=[old], instances=[running(1), running(2)], files=[a_file()])
        state.put_model(described(old, backend_parameters=NEW))

        assert decide(state, 1) == [Create(1, 1)]

        new = state.models[1].spec_digest
        state.put_instance(an_instance(3, S.STARTING, worker_id=1, spec_digest=new), 2)
        assert decide(state, 2) == []

        state.put_instance(running(3, spec_digest=new), 3)
        assert drained(decide(state, 3)) == [2]
        state.put_instance(draining(state.instances[2]), 4)
        assert created(decide(state, 4)) == 1

    @pytest.mark.parametrize(
        ("replicas", "rollout", "fewest", "most"),
        [
            (1, Rollout(), 1, 2),
            (3, Rollout(), 3, 5),
            (4, Rollout(max_surge=2), 4, 8),
            (3, Rollout(max_surge=0, max_unavailable=1), 2, 4),
            (4, Rollout(max_surge=2, max_unavailable=2), 2, 8),
        ],
    )
    def test_it_keeps_to_its_limits_all_the_way(
        self, replicas: int, rollout: Rollout, fewest: int, most: int
    ) -> None:
        world = World(replicas=replicas, rollout=rollout)
        world.settle()
        assert len(world.serving) == replicas

        world.edit(backend_parameters=NEW)
        world.settle()

        assert world.current == [True] * replicas
        assert world.fewest >= fewest
        assert world.most <= most
        assert len(world.state.instances) == replicas

    @pytest.mark.parametrize("replicas", [1, 3])
    def test_one_that_never_runs_leaves_the_old_ones_alone(self, replicas: int) -> None:
        world = World(replicas=replicas, runs=lambda parameters: parameters != ["--bad"])
        world.settle()
        world.edit(backend_parameters=["--bad"])
        world.settle()

        assert world.current == [False] * replicas
        assert world.fewest == replicas

        world.edit(backend_parameters=[])
        world.settle()
        assert world.current == [True] * replicas
        assert len(world.state.instances) == replicas

        world.edit(backend_parameters=["--bad"])
        world.settle()
        world.edit(backend_parameters=NEW)
        world.settle()
        assert world.current == [True] * replicas
        assert world.fewest == replicas

    def test_a_description_that_starts_nothing_anew_rolls_nothing(self) -> None:
        old = a_model(ready_replicas=1)
        state = a_state(models=[old], instances=[running(1)])
        state.put_model(described(old, description="other", meta={"a": 1}))

        assert decide(state, 1) == []

    def test_a_restart_of_the_server_in_between_leaves_none_behind(self) -> None:
        model = described(a_model(replicas=2, ready_replicas=2), env={"A": "1"})
        instances = [running(1), running(2, spec_digest=model.spec_digest)]

        assert decide(a_state(models=[model], instances=instances), 0) == [Create(1, 1)]

    def test_a_change_while_it_was_being_placed_is_not_missed(self) -> None:
        old = a_model()
        state = a_state(models=[old], instances=[running(1)])
        state.put_model(described(old, env={"A": "1"}, ready_replicas=1))

        assert decide(state, 1) == [Create(1, 1)]

    def test_one_that_failed_before_it_was_placed_is_tried_again(self) -> None:
        model = described(a_model(), env={"A": "1"})
        state = a_state(models=[model], instances=[an_instance(1, S.ERROR)], files=[a_file()])

        assert decide(state, 0) == [Restart(1, "the model was changed; trying again")]

    @pytest.mark.parametrize("there", [S.ERROR, S.STARTING, S.SCHEDULED, S.INITIALIZING])
    def test_one_that_does_not_run_goes_at_once(self, there: InstanceState) -> None:
        old = a_model(replicas=2, ready_replicas=1)
        state = a_state(models=[old], instances=[running(1), an_instance(2, there, worker_id=1)])
        state.put_model(described(old, env={"A": "1"}))

        assert set(decide(state, 1)) == {Create(1, 2), Drain(2, CHANGED, 120)}

    def test_one_that_is_out_of_sight_may_come_back_while_too_few_run(self) -> None:
        old = a_model(replicas=1, ready_replicas=0)
        lost = an_instance(1, S.UNREACHABLE, worker_id=1)
        state = a_state(
            models=[old], instances=[lost], workers=[a_worker(1, state=WorkerState.UNREACHABLE), a_worker(2)]
        )
        state.put_model(described(old, env={"A": "1"}))
        actions = decide(state, 1)
        assert (created(actions), drained(actions)) == (1, [])

        new = state.models[1].spec_digest
        state.put_instance(running(2, worker=2, spec_digest=new), 1)
        assert drained(decide(state, 1)) == [1]


class TestScaling:
    @given(
        before=st.integers(0, 4),
        during=st.integers(0, 5),
        after=st.integers(0, 5),
        steps=st.integers(0, 12),
        surge=st.integers(0, 2),
        missing=st.integers(0, 2),
        bad=st.booleans(),
    )
    @settings(max_examples=150, deadline=None)
    def test_whatever_is_asked_in_the_middle_of_a_roll_comes_true(
        self, before: int, during: int, after: int, steps: int, surge: int, missing: int, bad: bool
    ) -> None:
        rollout = Rollout(max_surge=surge, max_unavailable=missing or (1 if surge == 0 else 0))
        world = World(replicas=before, rollout=rollout, runs=lambda parameters: parameters != ["--bad"])
        world.settle()
        world.edit(backend_parameters=["--bad"] if bad else NEW, replicas=during)
        for _ in range(steps):
            world.act()
            assert len(world.serving) >= min(before, during) - rollout.max_unavailable
            world.advance()
        world.edit(backend_parameters=NEW, replicas=after)
        world.settle()

        assert world.current == [True] * after
        assert len(world.state.instances) == after

    def test_more_in_the_middle_of_a_roll_come_at_once_and_take_nobody_down(self) -> None:
        model = described(a_model(replicas=4, ready_replicas=2), env={"A": "1"})
        instances = [running(1), running(2, spec_digest=model.spec_digest)]

        assert decide(a_state(models=[model], instances=instances), 0) == [Create(1, 3)]

    def test_fewer_in_the_middle_of_a_roll_takes_the_old_ones_that_nobody_misses(self) -> None:
        model = described(a_model(replicas=1, ready_replicas=3), env={"A": "1"})
        starting = an_instance(4, S.STARTING, worker_id=1, spec_digest=model.spec_digest)
        state = a_state(models=[model], instances=[running(1), running(2), running(3), starting])

        assert drained(decide(state, 0)) == [3, 2]

    def test_on_the_worker_with_most_of_them_the_newest_goes(self) -> None:
        workers = [a_worker(1), a_worker(2), a_worker(3)]
        instances = [running(1), running(2, worker=2), running(3, worker=2), running(4, worker=3)]

        def gone(replicas: int) -> list[int]:
            model = a_model(replicas=replicas, ready_replicas=4)
            return drained(decide(a_state(models=[model], workers=workers, instances=instances), 0))

        assert gone(3) == [3]
        assert gone(2) == [3, 4]
        assert gone(1) == [3, 4, 2]
        assert gone(0) == [3, 4, 2, 1]

    def test_what_drains_counts_no_more_and_is_left_alone(self) -> None:
        model = a_model(replicas=1, ready_replicas=2)
        state = a_state(models=[model], instances=[draining(running(1)), running(2)])

        assert decide(state, 0) == [SetReady(1, 1)]


class TestWithoutRoom:
    def test_an_old_one_makes_room_and_the_waiting_one_says_so(self) -> None:
        world = World(replicas=1, ram=6)
        world.settle()
        world.edit(backend_parameters=NEW)
        world.settle()

        assert world.current == [True]
        assert len(world.state.instances) == 1
        assert any(
            "waits for the room of tiny-00001, which ends once its requests are answered" in each
            for each in world.said
        )

    def test_no_more_than_one_is_missing_at_a_time(self) -> None:
        world = World(replicas=3, ram=13)
        world.settle()
        assert len(world.serving) == 3
        world.edit(backend_parameters=NEW)
        world.settle()

        assert world.current == [True] * 3
        assert world.fewest == 2

    def test_new_ones_that_never_run_cost_one_old_one_at_most(self) -> None:
        world = World(replicas=3, ram=13, runs=lambda parameters: parameters != NEW)
        world.settle()
        world.edit(backend_parameters=NEW)
        world.settle()

        assert world.current == [False, False]

    def test_what_would_not_fit_even_then_ends_nothing(self) -> None:
        world = World(replicas=2, ram=9)
        world.settle()
        world.claim = ResourceClaim(ram=10 * GIB)
        world.state.answers.clear()
        world.edit(backend_parameters=NEW)
        world.settle()

        assert world.current == [False, False]
        assert world.fewest == 2

    def test_another_models_instances_do_not_make_room(self) -> None:
        world = World(replicas=1, ram=9)
        world.settle()
        other = described(a_model(2, name="other"), local_path="/models/other.gguf")
        world.state.put_model(other)
        world.state.put_instance(running(50, model_id=2, spec_digest=other.spec_digest), world.now)
        world.claim = ResourceClaim(ram=8 * GIB)
        world.state.answers.clear()
        world.edit(backend_parameters=NEW)
        world.settle()

        assert world.current == [False]


class TestTimeToDrain:
    def test_the_row_goes_when_its_worker_says_nothing(self) -> None:
        lost = draining(an_instance(1, S.UNREACHABLE, worker_id=1), seconds=10)
        state = a_state(models=[], instances=[lost], workers=[a_worker(state=WorkerState.UNREACHABLE)])

        assert decide(state, 39) == []
        assert decide(state, 41) == [Finish(1, "its time to end is over")]

    def test_a_new_server_counts_on_from_when_it_began(self) -> None:
        row = draining(running(1), seconds=100)
        state = a_state(models=[], instances=[row], age=80)
        state.alive(1, 200)

        assert decide(state, 49) == []
        assert decide(state, 51) == [Finish(1, "its time to end is over")]

    def test_it_is_neither_placed_again_nor_failed(self) -> None:
        row = draining(an_instance(1, S.STARTING, worker_id=1), seconds=86400)
        state = a_state(models=[], instances=[row])
        state.alive(1, 5000)

        assert decide(state, 5000) == []

    def test_off_its_worker_there_is_nothing_to_wait_for(self) -> None:
        state = a_state(models=[], instances=[draining(an_instance(1))])

        assert decide(state, 0) == [Finish(1, "its time to end is over")]

    def test_its_claim_counts_until_it_is_gone(self) -> None:
        state = a_state(models=[], instances=[draining(running(1))], workers=[a_worker(ram=6)])

        assert state.snapshot().rooms[1].ram_free == 2 * GIB

    def test_a_timer_looks_again_when_its_time_is_over(self) -> None:
        state = a_state(models=[], instances=[draining(running(1), datetime.now(UTC) + timedelta(1), 10)])

        assert ("instance", 1) in state.timers.pop(41)
