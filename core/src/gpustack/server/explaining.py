"""Why instances are where they are, or nowhere: the fleet as it is now, and past decisions from their records."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from datetime import UTC, datetime

from gpustack.db import Store
from gpustack.db.repositories.decisions import Spot
from gpustack.plugin import EstimateRequest, ModelFacts, SuggestsLess
from gpustack.scheduling import Placed, Refused, Request
from gpustack.scheduling.account import account
from gpustack.scheduling.records import Entry, Replay, verdict
from gpustack.scheduling.remedies import Alternative, remedies
from gpustack.schemas import InstanceState, ModelInstancePublic, ModelPublic, Source, WorkerPublic
from gpustack.schemas.explanations import InstanceExplanation, ModelExplanation, Outcome
from gpustack.server import telling
from gpustack.server.decisions import DecisionLog, recorded
from gpustack.server.reconcile import Limits, byhand, hub
from gpustack.server.reconcile.choosing import why
from gpustack.server.reconcile.lore import Known, Lore, wish
from gpustack.server.reconcile.questions import Backends, Question, ask, questions, spanning
from gpustack.server.reconcile.reading import read_rows
from gpustack.server.reconcile.spanning import may_span, widened
from gpustack.server.reconcile.state import State
from gpustack.server.unread import unread

log = logging.getLogger(__name__)

#: Pages of old decisions that are read for one answer: each costs a fleet made anew.
_MOST_READ = 8
#: Models whose instances are tried elsewhere.
_MOST_MOVABLE = 24
#: Rounds of questions to backends; each may open others.
_MOST_ROUNDS = 5
#: Seconds of searching for what would help; what was found by then is told.
_PATIENCE = 10.0

#: How the message of an instance begins for which others leave.
_FOR_ROOM = "waits for the room of"
_OF_REQUEST = {each.name for each in fields(Request)}
_KNOWN = tuple(each.name for each in fields(Known) if each.name in _OF_REQUEST)


class Explainer:
    """Answers on demand; nothing here slows a decision down."""

    def __init__(self, store: Store, backends: Backends, *, replace_after: float = 60.0) -> None:
        """``replace_after`` are the seconds that an instance keeps its place on a worker that is lost from sight."""
        self._store = store
        self._backends = backends
        self._replace_after = replace_after
        #: Asked to write down what it has, so that the newest decision is explained too; None where another server decides.
        self.log: DecisionLog | None = None

    async def explain(self, model: ModelPublic) -> ModelExplanation:
        """Return why each instance of ``model`` is where it is, or nowhere.

        What waits is decided anew on the fleet of this moment. Raises GPUStackError when the database is away.
        """
        if self.log is not None:
            await self.log.flush()
        spots = await self._store.decisions.last_of_model(model.id)
        look = _Look(await self._state(), self._backends, model)
        read: dict[int, None] = {}
        found = []
        for instance in look.state.instances_of(model.id):
            spot = spots.get(instance.id)
            if instance.worker_id is None:
                found.append(await look.unplaced(instance, spot))
                continue
            past = None
            if spot is not None and (spot.page_id in read or len(read) < _MOST_READ):
                read[spot.page_id] = None
                past = await recorded(self._store, spot)
            told = await asyncio.to_thread(look.placed, instance, spot, past)
            told = told.model_copy(update={"reasons": [*await look.choice(instance), *told.reasons]})
            if instance.state is InstanceState.UNREACHABLE:
                line = telling.replacement(instance, self._replace_after, datetime.now(UTC))
                told = told.model_copy(update={"reasons": [line, *told.reasons]})
            found.append(told)
        return ModelExplanation(
            model_id=model.id,
            model_name=model.name,
            replicas=model.replicas,
            ready_replicas=model.ready_replicas,
            instances=found,
        )

    async def _state(self) -> State:
        """Return what the reconciler would know if it began now."""
        rows = await read_rows(self._store)
        versions = {name: backend.default_version for name, (backend, _) in self._backends.items()}
        state = State(Limits(), versions, now=time.monotonic())
        state.spanning = spanning(self._backends)
        await asyncio.to_thread(state.replace_rows, rows, now=time.monotonic(), wall=datetime.now(UTC))
        return state


def _asked_for(model: ModelPublic, instance_id: int, known: Known) -> Request:
    return replace(wish(model, instance_id), **{name: getattr(known, name) for name in _KNOWN})


class _Look:
    """One look at the fleet, for all instances of a model. The state is nobody else's."""

    def __init__(self, state: State, backends: Backends, model: ModelPublic) -> None:
        self.state = state
        self._backends = backends
        self._model = model
        #: Replicas wait for the same reason.
        self._waiting: InstanceExplanation | None = None

    # What has a place ------------------------------------------------------------------------------------

    def placed(
        self, instance: ModelInstancePublic, spot: Spot | None, past: tuple[Replay, Entry] | None
    ) -> InstanceExplanation:
        """Return where an instance is, and from the record of the decision why there."""
        base = telling.where(instance)
        if spot is None or past is None:
            return base.model_copy(update={"reasons": ["the record of its decision is not kept"]})
        replay, entry = past
        told = base.model_copy(update={"decision_id": spot.id, "decided_at": spot.decided_at})
        made = entry.placed
        if made is None or made.worker_id != instance.worker_id:
            return told.model_copy(update={"reasons": ["its last recorded decision was another one"]})
        fleet = replay.fleet
        again = fleet.place(entry.request)
        why = account(fleet, entry.request, made)
        names = {each.id: each.name for each in fleet.workers()}
        return told.model_copy(
            update={
                "seats": telling.seats(made, names),
                "reasons": list(why.reasons),
                "filters": telling.counts(why.steps),
                "workers": why.workers,
                "with_room": why.with_room,
                "replayed": verdict(again) == entry.verdict,
            }
        )

    async def choice(self, instance: ModelInstancePublic) -> list[str]:
        """Return why its backend serves it and not another, by what they say now."""
        if self._model.backend:
            return [f"backend {self._model.backend}: the model names it"]
        worker = self.state.workers.get(instance.worker_id or 0)
        if worker is None or (facts := self._facts(worker)) is None:
            return []
        asked = questions(self._model, worker, facts, self.state.known)
        await self._answer(each for each in asked if each not in self.state.answers)
        answered = [(each, self.state.answers[each]) for each in asked]
        return why(answered, instance.backend, gpus=bool(instance.gpu_indexes))

    def _facts(self, worker: WorkerPublic) -> ModelFacts | None:
        """Return what the model's files say, as ``worker`` has them."""
        if self._model.source is Source.HUGGINGFACE:
            workers = Lore(self.state, time.monotonic()).workers(self._model)
            return hub.Hub(self.state, self._model, workers).facts(frozenset())
        return telling.facts_in(self.state.file(worker.id, self._model))

    # What has none ---------------------------------------------------------------------------------------

    async def unplaced(self, instance: ModelInstancePublic, spot: Spot | None) -> InstanceExplanation:
        """Return why an instance has no place, and what would give it one."""
        own = {
            "instance_id": instance.id,
            "instance_name": instance.name,
            "state": instance.state,
            "decision_id": None if spot is None else spot.id,
            "decided_at": None if spot is None else spot.decided_at,
        }
        if instance.state is InstanceState.ANALYZING:
            summary = instance.state_message or "its files are being read"
            return InstanceExplanation(**own, outcome=Outcome.NOT_DECIDED, summary=summary)
        if self._waiting is None:
            self._waiting = await self._decide(instance)
        leaving = [each for each in instance.state_message.splitlines() if each.startswith(_FOR_ROOM)]
        missing = byhand.missing(self._model, self.state.workers.values())
        return self._waiting.model_copy(update={**own, "reasons": [*leaving, *missing]})

    async def _decide(self, instance: ModelInstancePublic) -> InstanceExplanation:
        request = await self._request(self._model, instance.id)
        base = InstanceExplanation(
            instance_id=instance.id,
            instance_name=instance.name,
            state=instance.state,
            outcome=Outcome.NOT_DECIDED,
            summary="backends have not answered yet",
        )
        if request is None:
            return base
        fleet = self.state.fleet
        answer = await asyncio.to_thread(fleet.place, request)
        names = {each.id: each.name for each in fleet.workers()}
        if isinstance(answer, Placed):
            summary = f"it fits on worker {names[answer.worker_id]} now"
            return base.model_copy(
                update={"outcome": Outcome.FITS, "summary": summary, "seats": telling.seats(answer, names)}
            )
        told = telling.refusal(base, answer, failed=instance.state is InstanceState.ERROR)
        tried = [telling.remedy(each, names, self.state) for each in await self._remedies(answer)]
        return told.model_copy(update={"remedies": [*tried, *unread(self.state, self._model)]})

    async def _remedies(self, refused: Refused) -> list[telling.FoundRemedy]:
        found: list[list[Alternative]] = []
        try:
            async with asyncio.timeout(_PATIENCE):
                for kind in await self._suggestions():
                    if (fitting := await self._first_that_fits(kind, refused.request)) is not None:
                        found.append([fitting])  # noqa: PERF401  # what was found in time is kept
        except TimeoutError:
            log.warning("model %s: backends are slow to say what would need less memory", self._model.name)
        movable = await self._movable(refused) if refused.for_room_only else {}
        relaxed = await self._request(self._model, refused.request.instance_id, everybody=True)
        return await asyncio.to_thread(remedies, self.state.fleet, refused, found, movable, relaxed)

    async def _first_that_fits(
        self, kind: Sequence[tuple[str, tuple[str, ...]]], request: Request
    ) -> Alternative | None:
        for what, parameters in kind:
            model = self._model.model_copy(update={"backend_parameters": list(parameters)})
            changed = await self._request(model, request.instance_id)
            if changed is not None and isinstance(self.state.fleet.place(changed), Placed):
                return Alternative(what=what, request=changed, parameters=parameters)
        return None

    async def _suggestions(self) -> list[list[tuple[str, tuple[str, ...]]]]:
        """Return what backends say takes less memory: kinds of changes, each from the least to the greatest."""
        found: dict[str, list[list[tuple[str, tuple[str, ...]]]]] = {}
        for question in self._asked(self._model):
            backend, plugin = self._backends[question.asked]
            if question.backend in found or not isinstance(backend, SuggestsLess):
                continue
            request = EstimateRequest(
                model=question.facts,
                version=question.version,
                parameters=question.parameters,
                devices=question.devices,
                platform=question.platform,
            )
            found[question.backend] = await telling.suggestions(plugin, backend, request)
        return [kind for kinds in found.values() for kind in kinds]

    async def _movable(self, refused: Refused) -> Mapping[int, Request]:
        """Return requests for the instances on the nearest workers, as if they had no place yet."""
        near = [each for each in refused.named if each.failed is None]
        held = {holding.instance_id: None for each in near for holding in each.holdings}
        instances = [self.state.instances[number] for number in held if number in self.state.instances]
        models = list(dict.fromkeys(each.model_id for each in instances))[:_MOST_MOVABLE]
        requests: dict[int, Request] = {}
        for model_id in models:
            model = self.state.models.get(model_id)
            if model is not None and (request := await self._request(model, 0)) is not None:
                requests[model_id] = request
        return {
            each.id: replace(requests[each.model_id], instance_id=each.id)
            for each in instances
            if each.model_id in requests and each.draining_since is None
        }

    async def _request(
        self, model: ModelPublic, instance_id: int, *, everybody: bool = False
    ) -> Request | None:
        """Return what the model asks for, with the answers of backends; None when these go on asking.

        With ``everybody`` they are asked for workers too that it is not for: not selected, or not ready.
        """
        for _ in range(_MOST_ROUNDS):
            known = self._known(model, everybody=everybody)
            if not known.open:
                request = _asked_for(model, instance_id, known)
                known = await asyncio.to_thread(self._divided, model, request, known, everybody)
                if not known.open:
                    return _asked_for(model, instance_id, known)
            await self._answer(known.open)
        return None

    def _divided(self, model: ModelPublic, request: Request, known: Known, everybody: bool) -> Known:
        """Return what is known with the ways over several workers, of a model that no single one can hold."""
        refused = self.state.fleet.place(request)
        if not isinstance(refused, Refused) or not may_span(self.state, model, refused):
            return known
        now = time.monotonic()
        spread = widened(self.state, Lore(self.state, now, everybody=everybody), model, known, now)
        return known if spread is None else spread.known

    async def _answer(self, asked: Iterable[Question]) -> None:
        some = list(asked)
        answers = await asyncio.gather(*(ask(each, self._backends, time.monotonic()) for each in some))
        for question, answer in zip(some, answers, strict=True):
            # It expires with this look, so that nothing is asked twice.
            self.state.answers[question] = replace(answer, expires=None)

    def _known(self, model: ModelPublic, *, everybody: bool) -> Known:
        lore = Lore(self.state, time.monotonic(), everybody=everybody)
        if model.source is not Source.HUGGINGFACE:
            return lore.of_workers(model)
        return lore.of_hub(model, hub.Hub(self.state, model, lore.workers(model)).facts(frozenset()))

    def _asked(self, model: ModelPublic) -> list[Question]:
        """Return a question of each backend for each kind of worker that knows the files."""
        lore = Lore(self.state, time.monotonic())
        files = (
            hub.Hub(self.state, model, lore.workers(model)) if model.source is Source.HUGGINGFACE else None
        )
        found: dict[Question, None] = {}
        for worker in lore.workers(model):
            if files is not None:
                facts = files.facts(frozenset())
            else:
                file = self.state.file(worker.id, model)
                facts = telling.facts_in(file)
            if facts is not None:
                found.update(dict.fromkeys(questions(model, worker, facts, self.state.known)))
        return list(found)
