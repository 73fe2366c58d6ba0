"""From PENDING by way of the files and the backends to a worker, or to a reason why not."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from gpustack.scheduling import Placed, Refused, Request, explain
from gpustack.schemas import (
    InstanceMemory,
    InstanceState,
    ModelFilePublic,
    ModelFileState,
    ModelInstancePublic,
    ModelPublic,
    Source,
    WorkerPublic,
    source_key,
)
from gpustack.server.reconcile import byhand, hub
from gpustack.server.reconcile.actions import Action, Analyze, Ask, Drain, Fail, Move, Park, Restart, Schedule
from gpustack.server.reconcile.choosing import headline
from gpustack.server.reconcile.harm import least_harmful_first
from gpustack.server.reconcile.learned import memory_of
from gpustack.server.reconcile.lore import READING, Known, Lore, candidates, wish
from gpustack.server.reconcile.notes import Notes
from gpustack.server.reconcile.precedence import Precedence, Promises, precedence, promise_of, rank
from gpustack.server.reconcile.questions import Question, facts_of, questions
from gpustack.server.reconcile.spanning import may_span, widened
from gpustack.server.reconcile.state import State, worker_print

_S = InstanceState


def unplaced(state: State, now: float, *, skip: Collection[int]) -> list[Action]:
    """Return what is next for every instance without a worker: those of higher priority first, then the oldest."""
    waiting = by_priority(state, (state.instances[each] for each in state.unplaced.difference(skip)))
    if not waiting:
        return []
    with state.fleet.trial():
        return _next(state, waiting, now)


def _next(state: State, waiting: Sequence[ModelInstancePublic], now: float) -> list[Action]:
    """Return what is next for each of ``waiting``; what is scheduled holds its room for the rest of the trial."""
    actions: list[Action] = []
    old = _outdated(state)
    asked: set[Question] = set(state.asking)
    requested: set[tuple[int, str]] = set()
    lore, promises = Lore(state, now), Promises.of(state, now)
    for instance in waiting:
        model = state.models.get(instance.model_id)
        if model is None:
            continue  # deleted with its model; the event is on its way
        promises.hold(state, rank(state, instance))
        try:
            look = _Look(state, lore, promises, instance, model, old.get(model.id, ()), now)
            action = look.action()
        except Exception as error:  # noqa: BLE001  # its own instance fails, with the traceback in the log
            action = _broken(state, instance, model, error)
        else:
            actions += look.drains
        match action:
            case Park():
                promises.give(instance.id, action.promise)
            case None | Ask():
                pass  # what it was promised, it is still
            case _:
                promises.give(instance.id, None)
        match action:
            case Schedule():
                for holding in action.placed.holdings():
                    state.fleet.hold(holding)
            case Ask():
                action = Ask(tuple(each for each in action.questions if each not in asked))
                asked.update(action.questions)
                if not action.questions:
                    continue
            case Analyze():
                # One reading serves all replicas that wait for it.
                fresh = tuple(w for w in action.request if (w, source_key(model)) not in requested)
                requested.update((w, source_key(model)) for w in fresh)
                action = replace(action, request=fresh)
            case None:
                continue
            case _:
                pass
        actions.append(action)
    return actions


def _broken(state: State, instance: ModelInstancePublic, model: ModelPublic, error: Exception) -> Fail | None:
    """Return how an instance fails whose decision raised ``error``; None when that has been said already."""
    message = (
        f"GPUStack failed to decide where model {model.name} can run: {type(error).__name__}: {error}\n"
        "the server's log says where; other models are not affected. Change the model's parameters, or report this"
    )
    if instance.state is _S.ERROR and instance.state_message == message:
        return None
    # A change of the model starts it again, and so does a worker of another kind.
    tried = frozenset(worker_print(each) for each in state.workers.values())
    return Fail(instance.id, message, tried, model.spec_digest, error)


def by_priority(state: State, instances: Iterable[ModelInstancePublic]) -> list[ModelInstancePublic]:
    """Return the instances of models with a higher priority first, equal ones by age."""
    return sorted(instances, key=lambda each: rank(state, each))


def anew(
    state: State, instances: Iterable[ModelInstancePublic], now: float
) -> tuple[dict[int, Request], tuple[Question, ...]]:
    """Return what would be asked for these instances if they were placed now, by id, and what is not known for it.

    Instances of which something is not known are left out.
    """
    lore = Lore(state, now)
    found: dict[int, Request] = {}
    unknown: dict[Question, None] = {}
    for instance in instances:
        model = state.models.get(instance.model_id)
        if model is None:
            continue
        request, open_questions = _Look(state, lore, Promises(), instance, model, (), now).wish()
        unknown.update(dict.fromkeys(open_questions))
        if not open_questions:
            found[instance.id] = request
    return found, tuple(unknown)


def _outdated(state: State) -> dict[int, list[ModelInstancePublic]]:
    """Return the running instances that are to be replaced, by model."""
    found: dict[int, list[ModelInstancePublic]] = {}
    for each in state.instances.values():
        if each.state is _S.RUNNING and each.draining_since is None and state.outdated(each):
            found.setdefault(each.model_id, []).append(each)
    return found


def prints(state: State, instance: ModelInstancePublic) -> frozenset[str]:
    """Return which workers, as they are now, may be considered for the instance."""
    model = state.models.get(instance.model_id)
    if model is None:
        return frozenset()
    return frozenset(worker_print(each) for each in candidates(state, model))


class _Look:
    """One look at one instance."""

    def __init__(
        self,
        state: State,
        lore: Lore,
        promises: Promises,
        instance: ModelInstancePublic,
        model: ModelPublic,
        old: Sequence[ModelInstancePublic],
        now: float,
    ) -> None:
        self._state = state
        #: Those of the model that run what it was before a change.
        self._old = old
        self._lore = lore
        self._promises = promises
        #: Why backends do not divide it over several workers.
        self._undivided: tuple[str, ...] = ()
        #: Who is to leave for it.
        self.drains: list[Drain] = []
        self._instance = instance
        self._model = model
        self._now = now
        self._notes: Notes = state.notes[instance.id]
        self._workers = lore.workers(model)
        self._readers = lore.readers(model)
        #: Files on a hub are the same for all workers, so one reads for all.
        self._hub = hub.Hub(state, model, self._workers) if model.source is Source.HUGGINGFACE else None

    def action(self) -> Action | None:
        """Return the next step, or None when there is nothing to do but wait."""
        match self._instance.state:
            case _S.PENDING:
                return self._pending()
            case _S.ANALYZING:
                return self._analyzing()
            case _S.ERROR:
                return self._failed()
            case _:
                return None

    def wish(self) -> tuple[Request, list[Question]]:
        """Return what would be asked for, and what backends have to say before."""
        known = self._known()
        request = self._request(known)
        if known.open:
            return request, [*known.open]
        answer = self._state.fleet.place(request)
        if isinstance(answer, Refused) and (wider := self._over_several(known, answer)) is not None:
            return self._request(wider), [*wider.open]
        return request, []

    def _pending(self) -> Action | None:
        state, notes = self._state, self._notes
        waits = state.refused_still(self._instance.id) and not state.lapsed(self._instance.id, self._now)
        if waits and self._now < (state.due(self._instance) or 0.0):
            return None
        if self._hub is not None and self._workers:
            ready = self._hub.answer(notes.asked) if notes.asked or self._hub.pinned else None
            return self._place() if ready is not None else self._ask_hub(self._hub, frozenset())
        new = [w for w in self._readers if w.id not in notes.asked or self._file(w) is None]
        if new:
            return self._analyze(new)
        return self._place() if self._workers else self._no_worker()

    def _analyzing(self) -> Action | None:
        if not self._workers:
            return self._no_worker()
        if self._hub is not None:
            return self._analyzing_hub(self._hub)
        if unread := [w for w in self._readers if self._file(w) is None]:
            return self._analyze(unread)
        files = [self._file(w) for w in self._readers]
        reading = any(file is not None and file.state in READING for file in files)
        patient = self._now < self._notes.since + self._state.limits.patience
        some = any(file is not None and file.state is ModelFileState.READY for file in files)
        if reading and (patient or not some):
            return None
        return self._place(others_reading=reading)

    def _analyze(self, workers: list[WorkerPublic]) -> Analyze:
        """Have the files read anew, except where they are being read right now."""
        request = [w.id for w in workers if (file := self._file(w)) is None or file.state not in READING]
        return Analyze(self._instance.id, tuple(w.id for w in self._readers), tuple(request))

    def _analyzing_hub(self, files: hub.Hub) -> Action | None:
        if (reading := files.reading()) is not None:
            said = reading.state_message
            if said and said != self._instance.state_message:
                return Move(self._instance.id, _S.ANALYZING, said)
            return None
        known = files.answer(self._notes.asked) is not None
        return self._place() if known else self._ask_hub(files, self._notes.asked)

    def _ask_hub(self, files: hub.Hub, asked: Collection[int]) -> Analyze | Fail:
        """Have the files read by one more worker than ``asked``, who could not, or give up."""
        refusals = files.refusals(asked)
        if (worker := files.whom(asked)) is None:
            tried = frozenset(worker_print(w) for w in self._workers)
            lines = "\n".join([*refusals, self._what_to_do()])
            return Fail(self._instance.id, lines, tried, self._model.spec_digest)
        request = () if files.reading() is not None else (worker,)
        message = f"asking another worker: {refusals[0]}" if refusals else ""
        return Analyze(self._instance.id, (worker,), request, files.pinned, message)

    def _failed(self) -> Action | None:
        if self._notes.retry or self._instance.spec_digest != self._model.spec_digest:
            return Restart(self._instance.id, "the model was changed; trying again")
        if self._hub is not None and self._hub.exhausted():
            return None  # yet another worker would hear the same from the hub
        if not {worker_print(each) for each in self._workers} <= self._notes.tried:
            return Restart(self._instance.id, "another worker is ready; trying again")
        return None

    def _place(self, *, others_reading: bool = False) -> Action | None:
        known = self._known()
        if known.open:
            return Ask(tuple(known.open))
        request = self._request(known)
        answer = self._state.fleet.place(request)
        if isinstance(answer, Refused) and not (others_reading or known.passing):
            wider = self._over_several(known, answer)
            if wider is not None and wider.open:
                return Ask(tuple(wider.open))
            if wider is not None:
                known, request = wider, self._request(wider)
                answer = self._state.fleet.place(request)
        self._state.fleet.record(request, answer)
        match answer:
            case Placed() as placed:
                return self._schedule(placed)
            case Refused() as refused if refused.for_room_only or known.passing:
                return None if others_reading else self._wait_for_room(refused)
            case Refused() as refused:
                return None if others_reading else self._fail(refused)

    def _over_several(self, known: Known, refused: Refused) -> Known | None:
        """Return what is known with ways over several workers; None for a model that is for single ones."""
        if not may_span(self._state, self._model, refused):
            return None
        spread = widened(self._state, self._lore, self._model, known, self._now)
        self._undivided = () if spread is None else tuple(spread.reasons)
        return None if spread is None else spread.known

    def _known(self) -> Known:
        if self._hub is None:
            return self._lore.of_workers(self._model)
        return self._lore.of_hub(self._model, self._hub.facts(self._notes.asked))

    def _wait_for_room(self, refused: Refused) -> Park:
        lines = [*explain(refused), *(f"divided over several: {each}" for each in self._undivided)]
        if refused.for_room_only and (found := precedence(self._state, self._promises, refused.request)):
            self.drains += [self._drain(each) for each in found.victims]
            promise = promise_of(self._state, found, refused.request, self._now)
            return replace(self._park([self._waits_for(found), *lines], refused), promise=promise)
        if refused.for_room_only and (leaving := self._state.draining.get(self._model.id)):
            names = ", ".join(leaving.values())
            lines = [f"waits for the room of {names}, which ends once its requests are answered", *lines]
        room_of = self._whose_end_would_help(refused.request) if refused.for_room_only else None
        return self._park(lines, refused, room_of)

    def _drain(self, victim: int) -> Drain:
        model = self._state.models.get(self._state.instances[victim].model_id)
        seconds = 0 if model is None else model.rollout.drain_seconds
        why = f"its room goes to model {self._model.name}, whose priority is higher"
        return Drain(victim, why, seconds, self._instance.id)

    def _waits_for(self, found: Precedence) -> str:
        names = ", ".join(self._state.instances[each].name for each in found.leaving)
        end = "ends once its" if len(found.leaving) == 1 else "end once their"
        return f"waits for the room of {names}, which {end} requests are answered"

    def _whose_end_would_help(self, request: Request) -> int | None:
        """Return the old instance of the model that is missed least of those that would leave enough room."""
        fleet = self._state.fleet
        tried: set[tuple[int, str]] = set()
        for old in least_harmful_first(self._state, self._old):
            if old.worker_id is None or (like := (old.worker_id, str(old.computed_resource_claim))) in tried:
                continue
            tried.add(like)
            with fleet.trial():
                fleet.release(old.id)
                if isinstance(fleet.place(request), Placed):
                    return old.id
        return None

    def _fail(self, refused: Refused) -> Fail:
        name = self._model.name
        reasons = [
            f"{each.name}: {refused.reasons[each.id]}" for each in self._workers if each.id in refused.reasons
        ]
        headline = f"no worker can serve model {name}"
        # A table has room for the first line alone.
        lines = [f"{headline}: {reasons[0]}"] if len(reasons) == 1 else [headline, *reasons]
        lines += [f"divided over several: {each}" for each in self._undivided]
        lines += byhand.missing(self._model, self._state.workers.values())
        lines.append(self._what_to_do())
        tried = frozenset(worker_print(w) for w in self._workers)
        return Fail(self._instance.id, "\n".join(lines), tried, self._model.spec_digest)

    def _what_to_do(self) -> str:
        name = self._model.name
        return f"correct this, then `gpustack rm {name}` and deploy it again, or update the model"

    def _schedule(self, placed: Placed) -> Schedule:
        path, spec = self._path(placed.worker_id), self._model.spec_digest
        paths = tuple(self._path(each.worker_id) for each in placed.followers)
        asked = self._asked(placed)
        memory, why = self._memory(asked, placed), self._why(asked, placed)
        if self._hub is None or (file := self._hub.answer(self._notes.asked)) is None:
            return Schedule(placed, path, spec, note=why, memory=memory, paths=paths)
        note = "; ".join(filter(None, (file.state_message, why)))
        paths = tuple("" for _ in paths)
        return Schedule(placed, "", spec, file.resolved_revision, note, memory=memory, paths=paths)

    def _memory(self, asked: Sequence[Question], placed: Placed) -> InstanceMemory:
        """Return the estimate that the placement rests on, and what its measured peak will be kept by."""
        if placed.followers:
            # Its members differ, and what each takes tells nothing of another division.
            return InstanceMemory(estimated_ram=placed.ram, estimated_vram=sum(placed.vram.values()))
        return memory_of(asked, self._state.answers, placed, self._state.peaks)

    def _why(self, asked: Sequence[Question], placed: Placed) -> str:
        """Return why its backend was chosen, when the model names none."""
        if self._model.backend:
            return ""
        answers = self._state.answers
        known = [(each, answers[each]) for each in asked if each in answers]
        return headline(known, placed.way.backend, gpus=bool(placed.vram))

    def _asked(self, placed: Placed) -> list[Question]:
        """Return the questions whose answers the placement rests on."""
        worker = self._state.workers[placed.worker_id]
        if self._hub is not None:
            facts = self._hub.facts(self._notes.asked)
        else:
            file = self._file(worker)
            facts = facts_of(file.facts) if file is not None and file.facts is not None else None
        return questions(self._model, worker, facts, self._state.known) if facts is not None else []

    def _no_worker(self) -> Park:
        request = self._request(Known(gpus=self._lore.gpus(self._model)))
        refused = self._state.fleet.refuse(request)
        self._state.fleet.record(request, refused)
        return self._park(explain(refused), refused)

    def _park(self, lines: Sequence[str], refused: Refused, room_of: int | None = None) -> Park:
        refusal = self._state.refused(refused.request, self._model)
        missing = byhand.missing(self._model, self._state.workers.values())
        # A table has room for the first line alone: it is the reason when none of the chosen GPUs is there.
        said = [*lines, *missing] if self._workers else [*missing, *lines]
        return Park(self._instance.id, "\n".join(said), refusal, room_of)

    def _request(self, known: Known) -> Request:
        return replace(
            wish(self._model, self._instance.id),
            files=known.files,
            files_elsewhere=known.files_elsewhere,
            offers=known.offers,
            kinds=known.kinds,
            local=known.local,
            avoid=self._notes.avoid,
            gpus=known.gpus,
        )

    def _file(self, worker: WorkerPublic) -> ModelFilePublic | None:
        return self._state.file(worker.id, self._model)

    def _path(self, worker_id: int) -> str:
        file = self._state.file(worker_id, self._model)
        return file.facts.path if file is not None and file.facts is not None else self._model.local_path
