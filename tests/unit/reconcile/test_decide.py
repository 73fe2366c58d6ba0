"""What is decided on which state: no store, no clock, no plugin."""

from __future__ import annotations

import pytest

from gpustack.kit.text import GIB
from gpustack.plugin import ResourceClaim
from gpustack.schemas import (
    Claim,
    EventType,
    GpuMemory,
    GpuStatus,
    Heartbeat,
    InstanceState,
    MemoryStatus,
    ModelFileState,
    WorkerState,
    WorkerStatus,
)
from gpustack.server.reconcile.actions import (
    Action,
    Analyze,
    Ask,
    Create,
    Drain,
    Fail,
    LoseWorker,
    Move,
    Park,
    Restart,
    ReturnWorker,
    Schedule,
    SetCategories,
    SetReady,
)
from gpustack.server.reconcile.decide import decide
from gpustack.server.reconcile.questions import Answer, devices_of
from gpustack.server.reconcile.state import State
from support.reconcile import FACTS, PATH, Obedient, a_file, a_model, a_state, a_worker, an_instance, running

S = InstanceState
CLAIM = ResourceClaim(ram=4 * GIB)


def answered(state: State, answer: Answer | None = None, now: float = 0.0) -> list[Action]:
    """Decide with every question of a backend answered."""
    actions = decide(state, now)
    for action in actions:
        if isinstance(action, Ask):
            for question in action.questions:
                state.answers[question] = answer or Answer(claim=CLAIM)
            return answered(state, answer, now)
    return actions


class TestReplicas:
    def test_missing_ones_are_created(self) -> None:
        state = a_state(models=[a_model(replicas=3, ready_replicas=1)], instances=[running(1)])

        assert decide(state, 0) == [Create(1, 2)]

    def test_of_too_many_the_least_useful_go(self) -> None:
        instances = [
            running(1),
            running(2),
            an_instance(3, S.STARTING, worker_id=1),
            an_instance(4, S.ERROR, worker_id=1),
            running(5),
        ]

        def gone(replicas: int) -> list[int]:
            state = a_state(models=[a_model(replicas=replicas, ready_replicas=3)], instances=instances)
            return [each.instance_id for each in decide(state, 0) if isinstance(each, Drain)]

        assert gone(4) == [4]
        assert gone(3) == [4, 3]
        assert gone(2) == [4, 3, 5]
        assert gone(0) == [4, 3, 5, 2, 1]

    def test_what_runs_is_counted(self) -> None:
        state = a_state(
            models=[a_model(replicas=2)], instances=[running(1), an_instance(2, S.STARTING, worker_id=1)]
        )

        assert decide(state, 0) == [SetReady(1, 1)]

    def test_nothing_to_do_is_nothing(self) -> None:
        state = a_state(models=[a_model(ready_replicas=1)], instances=[running(1)], files=[a_file()])

        assert decide(state, 0) == []

    def test_what_the_files_say_is_kept(self) -> None:
        state = a_state(models=[a_model(replicas=0, categories=[])], files=[a_file()])

        assert decide(state, 0) == [SetCategories(1, ("llm",))]

    def test_what_the_first_worker_with_the_files_says_counts(self) -> None:
        unread = a_file(1, ModelFileState.ANALYZING)
        other = a_file(2, facts=FACTS.model_copy(update={"categories": ("embedding",)}))
        state = a_state(models=[a_model(replicas=0, categories=[])], files=[unread, other])
        assert decide(state, 0) == [SetCategories(1, ("embedding",))]

        state.put_file(a_file(1))
        assert decide(state, 0) == [SetCategories(1, ("llm",))]

        state.apply("model-files", EventType.DELETED, 1, {}, 0)
        state.apply("model-files", EventType.DELETED, 2, {}, 0)
        assert decide(state, 0) == []

    def test_deleted_instances_are_not_remembered_for_ever(self) -> None:
        state = a_state()
        for number in range(5000):
            state.put_instance(an_instance(number), 0)
            state.drop_instance(number)
        state.put_instance(an_instance(4999), 0)

        assert not state.instances
        assert len(state._deleted) <= 1000


class TestPlacing:
    def test_the_files_are_read_on_every_worker_that_may_serve(self) -> None:
        workers = [
            a_worker(1, labels={"zone": "a"}),
            a_worker(2, labels={"zone": "a"}),
            a_worker(3),
            a_worker(4, labels={"zone": "a"}, state=WorkerState.NOT_READY),
        ]
        state = a_state(
            models=[a_model(worker_selector={"zone": "a"})], workers=workers, instances=[an_instance()]
        )

        assert decide(state, 0) == [Analyze(1, (1, 2), (1, 2))]

    def test_one_reading_serves_all_replicas(self) -> None:
        state = a_state(models=[a_model(replicas=2)], instances=[an_instance(1), an_instance(2)])

        assert decide(state, 0) == [Analyze(1, (1,), (1,)), Analyze(2, (1,), ())]

    def test_a_reading_in_progress_is_not_asked_for_again(self) -> None:
        state = a_state(instances=[an_instance()], files=[a_file(1, ModelFileState.ANALYZING)])

        assert decide(state, 0) == [Analyze(1, (1,), ())]

    def test_it_goes_to_a_worker_with_everything_that_one_needs(self) -> None:
        state = a_state(instances=[an_instance(1, S.ANALYZING)], files=[a_file()])

        (schedule,) = answered(state)

        assert isinstance(schedule, Schedule)
        assert schedule.path == PATH
        assert (schedule.placed.worker_id, schedule.placed.ram) == (1, 4 * GIB)
        assert (schedule.placed.way.backend, schedule.placed.way.version) == ("obedient", "1.0")

    def test_a_question_is_asked_once(self) -> None:
        state = a_state(
            models=[a_model(replicas=2)],
            instances=[an_instance(1, S.ANALYZING), an_instance(2, S.ANALYZING)],
            workers=[a_worker(1), a_worker(2)],
            files=[a_file(1), a_file(2)],
        )

        asks = [each for each in decide(state, 0) if isinstance(each, Ask)]
        assert sum(len(each.questions) for each in asks) == 1
        state.asking.update(question for each in asks for question in each.questions)
        assert decide(state, 0) == []

    def test_two_in_one_decision_do_not_share_the_same_memory(self) -> None:
        state = a_state(
            models=[a_model(replicas=2)],
            instances=[an_instance(1, S.ANALYZING), an_instance(2, S.ANALYZING)],
            workers=[a_worker(ram=6)],
            files=[a_file()],
        )

        first, second = answered(state)

        assert isinstance(first, Schedule)
        assert isinstance(second, Park)
        assert "worker-1: needs 4.0 GiB RAM, 2.0 GiB of 6.0 GiB is free (4.0 GiB claimed)" in second.message

    def test_where_there_is_room_for_one_the_model_of_higher_priority_gets_it(self) -> None:
        state = a_state(
            models=[a_model(1), a_model(2, priority=5)],
            instances=[an_instance(1, S.ANALYZING), an_instance(2, S.ANALYZING, model_id=2)],
            workers=[a_worker(ram=6)],
            files=[a_file()],
        )

        found = {type(each): each for each in answered(state)}

        assert (found[Schedule].placed.instance_id, found[Park].instance_id) == (2, 1)  # type: ignore[attr-defined]

    def test_slow_readers_are_waited_for_a_little_when_others_have_the_files(self) -> None:
        state = a_state(
            instances=[an_instance(1, S.ANALYZING)],
            workers=[a_worker(1), a_worker(2)],
            files=[a_file(1, ModelFileState.ANALYZING), a_file(2)],
        )

        assert answered(state, now=4.9) == []
        (schedule,) = answered(state, now=5.1)
        assert isinstance(schedule, Schedule)
        assert schedule.placed.worker_id == 2

    def test_without_any_worker_it_waits_and_says_so(self) -> None:
        state = a_state(workers=[], instances=[an_instance()])

        (park,) = decide(state, 0)

        assert isinstance(park, Park)
        assert "no worker has joined yet" in park.message

    def test_files_that_are_bad_everywhere_are_an_error_with_the_workers_lines(self) -> None:
        state = a_state(
            instances=[an_instance(1, S.ANALYZING)],
            files=[a_file(1, ModelFileState.ERROR, state_message="/models/tiny.gguf does not exist")],
        )

        (fail,) = decide(state, 0)

        assert isinstance(fail, Fail)
        assert "worker-1: /models/tiny.gguf does not exist" in fail.message
        assert "deploy it again, or update the model" in fail.message

    def test_a_model_that_no_backend_takes_is_an_error_with_its_reason(self) -> None:
        state = a_state(instances=[an_instance(1, S.ANALYZING)], files=[a_file()])

        (fail,) = answered(state, Answer(refused_by="model", reason="obedient: GGUF only"))

        assert isinstance(fail, Fail)
        assert "worker-1: obedient: GGUF only" in fail.message

    def test_a_backend_that_is_not_installed_is_named_with_those_that_are(self) -> None:
        state = a_state(
            models=[a_model(backend="vllm")],
            instances=[an_instance(1, S.ANALYZING)],
            workers=[a_worker(catalogue={"backends": ["obedient", "vllm"]})],
            files=[a_file()],
        )

        (fail,) = decide(state, 0)

        assert isinstance(fail, Fail)
        assert "backend 'vllm' is not installed; there are: obedient" in fail.message

    def test_passing_trouble_of_a_backend_is_waited_for(self) -> None:
        state = a_state(instances=[an_instance(1, S.ANALYZING)], files=[a_file()])
        trouble = Answer(refused_by="trouble", reason="obedient: hangs", expires=30.0)

        (park,) = answered(state, trouble)
        assert isinstance(park, Park)
        assert "obedient: hangs" in park.message

        state.alive(1, 31.0)
        assert any(isinstance(each, Ask) for each in decide(state, 31.0))


class TestWaitingForRoom:
    def waiting(self) -> State:
        """Return a state in which instance 2 was refused for instance 1's memory."""
        other = a_model(2, ready_replicas=1)
        state = a_state(
            models=[a_model(), other],
            instances=[running(1, ram=22, model_id=2), an_instance(2, S.ANALYZING)],
            files=[a_file()],
        )
        (park,) = answered(state)
        assert isinstance(park, Park)
        state.put_instance(an_instance(2, state_message=park.message), 0.0)
        state.notes[2].asked.add(1)
        state.park(2, park.refusal, 0.0)
        assert decide(state, 1.0) == []
        return state

    def test_a_deleted_instance_makes_it(self) -> None:
        state = self.waiting()
        state.put_model(a_model(2, replicas=0))
        state.drop_instance(1)

        (schedule,) = decide(state, 1.0)
        assert isinstance(schedule, Schedule)

    def test_a_larger_worker_makes_it(self) -> None:
        state = self.waiting()
        state.put_worker(a_worker(ram=64), 1.0)

        (schedule,) = decide(state, 1.0)
        assert isinstance(schedule, Schedule)

    def test_a_new_worker_first_reads_the_files(self) -> None:
        state = self.waiting()
        state.put_worker(a_worker(2), 1.0)

        assert decide(state, 1.0) == [Analyze(2, (1, 2), (2,))]

    def test_others_ending_their_use_makes_it(self) -> None:
        state = self.waiting()
        full = WorkerStatus(memory=MemoryStatus(total=64 * GIB, used=62 * GIB))
        state.heard(1, Heartbeat(status=full), 1.0)
        assert decide(state, 2.0) == []

        free = WorkerStatus(memory=MemoryStatus(total=64 * GIB, used=30 * GIB))
        assert state.heard(1, Heartbeat(status=free), 2.0)

        (schedule,) = decide(state, 2.0)
        assert isinstance(schedule, Schedule)

    def test_gpus_that_are_found_later_make_it(self) -> None:
        state = self.waiting()
        status = state.workers[1].status
        gpu = GpuStatus(uuid="g", index=0, vendor="nvidia", name="L4", memory=GpuMemory(total=24 * GIB))
        broken = gpu.model_copy(update={"faults": ["it has fallen off the bus"]})

        assert not state.heard(1, Heartbeat(status=status.model_copy(update={"gpu_devices": [broken]})), 1.0)
        assert state.snapshot().rooms[1].worker.gpus == ()
        assert devices_of(state.workers[1]) == ()
        assert state.heard(1, Heartbeat(status=status.model_copy(update={"gpu_devices": [gpu]})), 2.0)
        assert [each.uuid for each in state.snapshot().rooms[1].worker.gpus] == ["g"]
        assert [each.uuid for each in devices_of(state.workers[1])] == ["g"]

    def test_at_the_latest_after_its_deadline_it_is_looked_at_again(self) -> None:
        state = self.waiting()
        state.alive(1, 31.0)

        (park,) = decide(state, 31.0)
        assert isinstance(park, Park)


class TestAfterAnError:
    def failed(self) -> State:
        state = a_state(instances=[an_instance(1, S.ERROR)], files=[a_file(1, ModelFileState.ERROR)])
        assert decide(state, 0) == []
        return state

    def test_time_alone_changes_nothing(self) -> None:
        state = self.failed()
        state.alive(1, 100_000)
        assert decide(state, 100_000) == []

    def test_a_changed_model_is_a_new_attempt(self) -> None:
        state = self.failed()
        state.put_model(a_model(local_path="/models/other.gguf"))

        assert decide(state, 1) == [Restart(1, "the model was changed; trying again")]

    def test_a_further_worker_is_a_new_attempt(self) -> None:
        state = self.failed()
        state.put_worker(a_worker(2), 1)

        assert decide(state, 1) == [Restart(1, "another worker is ready; trying again")]

    def test_a_worker_that_comes_back_is_none(self) -> None:
        state = self.failed()
        state.put_worker(a_worker(state=WorkerState.NOT_READY), 1)
        state.put_worker(a_worker(), 2)

        assert decide(state, 2) == []


DEADLINES = [
    (S.ANALYZING, None, 60, Fail),
    (S.SCHEDULED, 1, 60, Restart),
    (S.INITIALIZING, 1, 3600, Move),
    (S.DOWNLOADING, 1, 900, Move),
    (S.STARTING, 1, 660, Move),
]


class TestDeadlines:
    @pytest.mark.parametrize(("at", "worker", "seconds", "kind"), DEADLINES)
    def test_a_state_that_lasts_too_long_ends(
        self, at: InstanceState, worker: int | None, seconds: float, kind: type[Action]
    ) -> None:
        state = a_state(
            instances=[an_instance(1, at, worker_id=worker)], files=[a_file(1, ModelFileState.ANALYZING)]
        )
        for moment, expected in ((seconds - 0.1, []), (seconds + 0.1, [kind])):
            state.alive(1, moment)
            assert [type(each) for each in decide(state, moment)] == expected

    def test_loading_large_weights_may_take_longer(self) -> None:
        large = FACTS.model_copy(update={"weight_bytes": 20_000_000_000})
        state = a_state(instances=[an_instance(1, S.STARTING, worker_id=1)], files=[a_file(facts=large)])
        state.alive(1, 1661)

        assert decide(state, 1659) == []
        assert [type(each) for each in decide(state, 1661)] == [Move]

    def test_a_worker_that_did_not_take_it_comes_last_next_time(self) -> None:
        state = a_state(instances=[an_instance(1, S.SCHEDULED, worker_id=1)])
        state.alive(1, 61)

        (restart,) = decide(state, 61)
        assert isinstance(restart, Restart)
        assert restart.avoid == 1

    def test_after_a_start_of_the_server_workers_get_time_to_report(self) -> None:
        state = a_state(instances=[an_instance(1, S.SCHEDULED, worker_id=1)], age=1000.0)
        state.alive(1, 31)

        assert decide(state, 29) == []
        assert [type(each) for each in decide(state, 31)] == [Restart]

    def test_a_removed_workers_instances_go_elsewhere(self) -> None:
        state = a_state(
            models=[a_model(replicas=2, ready_replicas=1)],
            instances=[running(1, worker=7), an_instance(2, S.STARTING, worker_id=7)],
        )

        move, restart = decide(state, 1)
        assert isinstance(move, Move)
        assert move.state is S.UNREACHABLE
        assert isinstance(restart, Restart)


class TestSilence:
    def test_a_silent_worker_is_lost_with_its_instances(self) -> None:
        state = a_state(
            models=[a_model(replicas=2, ready_replicas=1)],
            instances=[running(1), an_instance(2, S.STARTING, worker_id=1)],
        )

        assert [each for each in decide(state, 20.0) if isinstance(each, LoseWorker)] == []
        (lost,) = decide(state, 20.1)
        assert lost == LoseWorker(1, "no sign of life for 20 s", (1, 2))

    def test_time_in_which_the_server_stood_still_does_not_count(self) -> None:
        state = a_state(models=[a_model(ready_replicas=1)], instances=[running(1)])
        state.forgive(30.0)

        assert decide(state, 49.0) == []
        assert [type(each) for each in decide(state, 50.1)] == [LoseWorker]

    def test_a_lost_worker_that_speaks_returns(self) -> None:
        state = a_state(instances=[an_instance(1, S.UNREACHABLE, worker_id=1)])
        state.put_worker(a_worker(state=WorkerState.UNREACHABLE), 30.0)
        assert decide(state, 30.0) == []

        assert state.heard(1, Heartbeat(), 31.0)
        assert decide(state, 31.0) == [ReturnWorker(1)]

    def test_registering_again_is_a_sign_of_life(self) -> None:
        state = a_state(instances=[an_instance(1, S.UNREACHABLE, worker_id=1)])
        state.put_worker(a_worker(state=WorkerState.UNREACHABLE), 30.0)
        state.put_worker(a_worker(), 40.0)

        assert decide(state, 41.0) == []

    def test_its_instances_are_placed_again_when_it_stays_away(self) -> None:
        state = a_state(
            instances=[an_instance(1, S.UNREACHABLE, worker_id=1)],
            workers=[a_worker(state=WorkerState.UNREACHABLE)],
        )

        assert decide(state, 59) == []
        assert [type(each) for each in decide(state, 61)] == [Restart]

    def fleet(self, silent: int, of: int) -> State:
        state = a_state(
            models=[a_model(replicas=of, ready_replicas=of)],
            workers=[a_worker(number) for number in range(1, of + 1)],
            instances=[running(number, worker=number) for number in range(1, of + 1)],
        )
        for number in range(silent + 1, of + 1):
            state.alive(number, 10_000.0)
        return state

    @pytest.mark.parametrize(("silent", "of", "lost"), [(5, 10, 5), (6, 10, 0), (10, 10, 0), (9, 9, 9)])
    def test_when_most_of_a_fleet_falls_silent_at_once_nobody_is_lost(
        self, silent: int, of: int, lost: int
    ) -> None:
        actions = decide(self.fleet(silent, of), 10_000.0)

        assert len([each for each in actions if isinstance(each, LoseWorker)]) == lost

    def test_nor_is_anything_moved_from_those_that_were_marked_before_the_rest(self) -> None:
        state = self.fleet(6, 10)
        state.put_worker(a_worker(1, state=WorkerState.UNREACHABLE), 21.0)
        state.put_instance(an_instance(1, S.UNREACHABLE, worker_id=1), 21.0)

        assert [type(each) for each in decide(state, 10_000.0)] == [SetReady]

    def test_long_dead_workers_do_not_make_a_storm(self) -> None:
        state = self.fleet(12, 15)
        for number in range(1, 12):
            state.seen[number] = -1000.0 * number
            state.put_worker(a_worker(number, state=WorkerState.UNREACHABLE), 0.0)
            state.drop_instance(number)

        lost = [each for each in decide(state, 10_000.0) if isinstance(each, LoseWorker)]
        assert [each.worker_id for each in lost] == [12]


def test_the_same_state_gives_the_same_decisions() -> None:
    def once() -> list[Action]:
        return answered(
            a_state(
                models=[a_model(replicas=4)],
                instances=[an_instance(number, S.ANALYZING) for number in (4, 2, 1, 3)],
                workers=[a_worker(2, ram=9), a_worker(1, ram=6)],
                files=[a_file(2), a_file(1)],
            )
        )

    assert once() == once()
    assert Obedient().claim == CLAIM


@pytest.mark.parametrize(
    ("others", "free"),
    [(None, 24 - 20), (0, 24 - 10), (6 * GIB, 24 - 6 - 10), (30 * GIB, 0)],
    ids=["claims stand for our use", "no others", "some others", "more than there is"],
)
def test_what_the_worker_knows_of_others_use_counts_before_what_claims_say(
    others: int | None, free: int
) -> None:
    """20 GiB are used, and an instance that runs has claimed 10."""
    memory = GpuMemory(total=24 * GIB, used=20 * GIB, others=others)
    gpu = GpuStatus(uuid="g", index=0, vendor="nvidia", name="L4", memory=memory)
    claim = Claim(ram=0, vram={0: 10 * GIB})
    instance = running(1).model_copy(update={"computed_resource_claim": claim})
    state = a_state(instances=[instance], workers=[a_worker(status=WorkerStatus(gpu_devices=[gpu]))])

    room = state.snapshot().rooms[1]

    assert room.vram_free(room.worker.gpus[0]) == free * GIB


def test_memory_that_a_worker_says_is_others_is_that_beside_what_claims_say() -> None:
    """Of 64 GiB others have 6, as the settings say, and an instance that runs has claimed 10."""
    memory = MemoryStatus(total=64 * GIB, used=6 * GIB, others=6 * GIB)
    instance = running(1).model_copy(update={"computed_resource_claim": Claim(ram=10 * GIB)})
    state = a_state(instances=[instance], workers=[a_worker(status=WorkerStatus(memory=memory))])

    room = state.snapshot().rooms[1]

    assert room.ram_free == (64 - 6 - 10) * GIB - room.worker.ram_reserved
