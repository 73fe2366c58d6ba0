"""What files and backends have said of models, gathered once for all instances of one look.

Workers of one kind get the same offers, so a backend's answer is looked up once for each kind, not for each worker.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from gpustack.plugin import ModelFacts
from gpustack.scheduling import FilesThere, Offer, Request, Way
from gpustack.schemas import ModelFileState, ModelPublic, Source, WorkerPublic
from gpustack.server.reconcile.byhand import choice
from gpustack.server.reconcile.choosing import in_order
from gpustack.server.reconcile.questions import Answer, Question, facts_of, questions
from gpustack.server.reconcile.state import State

READING = (ModelFileState.ANALYZING, ModelFileState.DOWNLOADING)
_THERE = FilesThere(ready=True)
_READING_STILL = FilesThere(ready=False, reason="is still reading the model's files")
_UNKNOWN = FilesThere(ready=False, reason="does not know the model's files yet")


@dataclass(slots=True)
class Known:
    """What files and backends have said so far of one model; see :class:`gpustack.scheduling.Request`."""

    files: dict[int, FilesThere] = field(default_factory=dict)
    files_elsewhere: FilesThere | None = None
    offers: dict[int, Offer] = field(default_factory=dict)
    kinds: dict[str, Offer] = field(default_factory=dict)
    local: frozenset[int] = frozenset()
    gpus: Mapping[str, frozenset[int]] | None = None
    #: What the files say, where that is the same for all workers.
    facts: ModelFacts | None = None
    #: What backends are to be asked before anything can be decided.
    open: dict[Question, None] = field(default_factory=dict)
    #: Some reason may go away by itself.
    passing: bool = False


class Lore:
    """Everything known at one moment; nothing of ``state`` but holdings may change while it is used."""

    def __init__(self, state: State, now: float, *, everybody: bool = False) -> None:
        """With ``everybody``, of all workers of a model's cluster: those that it does not select or are not ready too."""
        self._everybody = everybody
        self._state = state
        self._now = now
        self._workers: dict[int, list[WorkerPublic]] = {}
        self._readers: dict[int, list[WorkerPublic]] = {}
        self._known: dict[tuple[int, ModelFacts | None], Known] = {}
        self._gpus: dict[int, Mapping[str, frozenset[int]] | None] = {}

    def workers(self, model: ModelPublic) -> list[WorkerPublic]:
        """Return the workers that may be considered for the model, whatever its files and backends say."""
        found = self._workers.get(model.id)
        if found is None:
            found = self._in_cluster(model) if self._everybody else candidates(self._state, model)
            self._workers[model.id] = found
        return found

    def _in_cluster(self, model: ModelPublic) -> list[WorkerPublic]:
        workers = sorted(self._state.workers.values(), key=lambda each: each.id)
        return [each for each in workers if each.cluster_id == model.cluster_id]

    def gpus(self, model: ModelPublic) -> Mapping[str, frozenset[int]] | None:
        """Return the GPUs that were chosen for the model by worker name and index; None allows all."""
        if model.gpu_selector is None:
            return None
        if model.id not in self._gpus:
            self._gpus[model.id] = choice(model, self._state.workers.values())
        return self._gpus[model.id]

    def readers(self, model: ModelPublic) -> list[WorkerPublic]:
        """Return those of them that can read the files: not those without the plugin that carries them."""
        found = self._readers.get(model.id)
        if found is None:
            workers = self.workers(model)
            found = [each for each in workers if not lacks_plugin(model, each)]
            self._readers[model.id] = found
        return found

    def of_workers(self, model: ModelPublic) -> Known:
        """Return what is known of files that each worker has of its own."""
        return self._keep(model, None, lambda: self._of_workers(model))

    def of_hub(self, model: ModelPublic, facts: ModelFacts | None) -> Known:
        """Return what is known of files on a hub, whose facts are the same for all workers."""
        return self._keep(model, facts, lambda: self._of_hub(model, facts))

    def _keep(self, model: ModelPublic, facts: ModelFacts | None, make: Callable[[], Known]) -> Known:
        known = self._known.get((model.id, facts))
        if known is None:
            known = self._known[model.id, facts] = make()
        return known

    def _of_hub(self, model: ModelPublic, facts: ModelFacts | None) -> Known:
        if facts is None:
            return Known(files_elsewhere=_UNKNOWN, gpus=self.gpus(model), passing=True)
        files = self._state.files_of(model)
        known = Known(
            files_elsewhere=_THERE,
            local=frozenset(each.worker_id for each in files if each.state is ModelFileState.READY),
            gpus=self.gpus(model),
            facts=facts,
        )
        if model.gpu_selector is not None:
            for worker in self.workers(model):
                known.offers[worker.id] = self._offer(model, worker, facts, known)
            return known
        for kind, worker in self._samples(model).items():
            known.kinds[kind] = self._offer(model, worker, facts, known)
        return known

    def _of_workers(self, model: ModelPublic) -> Known:
        known = Known(gpus=self.gpus(model))
        offers: dict[tuple[str, ModelFacts], Offer] = {}
        kinds: dict[str, set[ModelFacts]] = {}
        state = self._state
        for worker in self.workers(model):
            files, facts = self._files_on(worker, model)
            known.files[worker.id] = files
            known.passing |= files is _READING_STILL
            if facts is None:
                continue
            # Of GPUs chosen by hand each worker has its own.
            kind = state.kinds[worker.id] if model.gpu_selector is None else worker.name
            kinds.setdefault(kind, set()).add(facts)
            if (offer := offers.get((kind, facts))) is None:
                offer = offers[kind, facts] = self._offer(model, worker, facts, known)
            known.offers[worker.id] = offer
        alike = model.gpu_selector is None and len(known.offers) == len(known.files)
        if alike and all(len(each) == 1 for each in kinds.values()):
            # The scheduler is many times faster with offers by kind.
            known.kinds = {kind: offer for (kind, _), offer in offers.items()}
            known.files_elsewhere = _THERE if known.files else None
            known.files, known.offers = {}, {}
        return known

    def facts_on(self, worker: WorkerPublic, model: ModelPublic) -> ModelFacts | None:
        """Return what the files say that a worker has of its own; None where that is not known."""
        return self._files_on(worker, model)[1]

    def _files_on(self, worker: WorkerPublic, model: ModelPublic) -> tuple[FilesThere, ModelFacts | None]:
        if lacks_plugin(model, worker):
            reason = f"has no plugin that brings the model {model.bundled_name}; install it there"
            return FilesThere(ready=False, reason=reason), None
        file = self._state.file(worker.id, model)
        if file is None or file.state in READING:
            return _READING_STILL, None
        readable = file.state is not ModelFileState.ERROR or self._state.known.reads_anything(model)
        if file.facts is None or not readable:
            reason = file.state_message or "could not read the model's files"
            return FilesThere(ready=False, reason=reason), None
        return _THERE, facts_of(file.facts)

    def _samples(self, model: ModelPublic) -> dict[str, WorkerPublic]:
        """Return one worker of each kind."""
        kinds = self._state.kinds
        return {kinds[each.id]: each for each in reversed(self.workers(model))}

    def _offer(self, model: ModelPublic, worker: WorkerPublic, facts: ModelFacts, known: Known) -> Offer:
        state = self._state
        asked = questions(model, worker, facts, state.known)
        if not asked:
            return Offer(refusals=(state.known.trouble(model) or "no backend is installed",))
        answers: list[tuple[Question, Answer]] = []
        for question in asked:
            answer = state.answers.get(question)
            if answer is None or (answer.expires is not None and answer.expires <= self._now):
                known.open[question] = None
            else:
                answers.append((question, answer))
                known.passing |= answer.refused_by == "trouble"
        if not model.backend:
            answers = in_order(answers)
        return Offer(
            ways=tuple(
                Way(
                    backend=question.backend,
                    version=question.version,
                    claim=state.peaks.corrected(question, claim),
                )
                for question, answer in answers
                for claim in answer.claims
            ),
            refusals=_reasons(answers, platform=False),
            platform_refusals=_reasons(answers, platform=True),
        )


def wish(model: ModelPublic, instance_id: int = 0) -> Request:
    """Return what a model asks for, before anybody has looked at its files, or at the types of GPUs."""
    return Request(
        instance_id=instance_id,
        model_id=model.id,
        model_name=model.name,
        cluster_id=model.cluster_id,
        selector=model.worker_selector,
        strategy=model.placement_strategy,
        backend=model.backend,
        priority=model.priority,
        gpus=None if model.gpu_selector is None else model.gpu_selector.indexes(),
    )


def candidates(state: State, model: ModelPublic) -> list[WorkerPublic]:
    """Return the workers that may be considered for the model, by id."""
    asked = wish(model)
    if model.gpu_selector is not None:
        asked = replace(asked, gpus=choice(model, state.workers.values()))
    return [state.workers[each] for each in state.fleet.candidates(asked)]


def lacks_plugin(model: ModelPublic, worker: WorkerPublic) -> bool:
    """Tell whether a worker has said that no plugin there carries the model's files, or is too old to know of any."""
    bundled = model.source is Source.BUNDLED
    return bundled and model.bundled_name not in worker.catalogue.get("bundled_models", ())


def _reasons(answers: list[tuple[Question, Answer]], *, platform: bool) -> tuple[str, ...]:
    reasons = [
        answer.reason
        for _, answer in answers
        if answer.refused_by and (answer.refused_by == "platform") == platform
    ]
    return tuple(dict.fromkeys(reasons))
