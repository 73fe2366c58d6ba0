"""What is known of a model whose files lie on a hub: the same for all workers, so one of them is asked for all."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property

from gpustack.plugin import ModelFacts
from gpustack.schemas import ModelFilePublic, ModelFileState, ModelPublic, WorkerPublic
from gpustack.server.reconcile.questions import facts_of
from gpustack.server.reconcile.state import State

#: The facts of a file in one of these states hold; an error then is one of the download.
_KNOWN = (ModelFileState.READY, ModelFileState.ANALYZED, ModelFileState.DOWNLOADING, ModelFileState.ERROR)


class Hub:
    """One model's files, as ``workers`` (those that may serve it) and others have found them."""

    def __init__(self, state: State, model: ModelPublic, workers: Sequence[WorkerPublic]) -> None:
        self._state = state
        self._model = model
        self._workers = {each.id for each in workers}
        self._files = state.files_of(model)

    @cached_property
    def pinned(self) -> str:
        """The commit that instances of these files are held to; empty when there are none."""
        known = {each.resolved_revision for each in self._files}
        held = [
            each
            for each in self._state.instances.values()
            if each.resolved_revision
            and self._is_alike(self._state.models.get(each.model_id))
            # One from before a change of its model may hold a commit of another revision or repository.
            and (each.resolved_revision in known or not self._state.outdated(each))
        ]
        return max(held, key=lambda each: each.id).resolved_revision if held else ""

    def reading(self) -> ModelFilePublic | None:
        """Return the file that a worker which may serve the model reads right now."""
        return next((each for each in self._mine() if each.state is ModelFileState.ANALYZING), None)

    def answer(self, asked: Collection[int]) -> ModelFilePublic | None:
        """Return the file whose facts hold: of the commit that all are held to, or what one of ``asked`` found.

        Nobody is known to have been asked after a restart of the server: then any will do.
        """
        for each in self._files:
            if each.facts is None or each.state not in _KNOWN or not each.resolved_revision:
                continue
            if self.pinned:
                if each.resolved_revision == self.pinned:
                    return each
            elif each.worker_id in asked or not asked:
                return each
        return None

    def facts(self, asked: Collection[int]) -> ModelFacts | None:
        """Return what :meth:`answer` says."""
        if self._facts is None and (file := self.answer(asked)) is not None and file.facts is not None:
            self._facts = facts_of(file.facts)
        return self._facts

    _facts: ModelFacts | None = None

    def error(self, asked: Collection[int]) -> str | None:
        """Return why the files could not be read, when that is so."""
        for each in self._mine():
            if (
                each.state is ModelFileState.ERROR
                and each.facts is None
                and (each.worker_id in asked or not asked)
            ):
                return each.state_message or "the model's files could not be read"
        return None

    def whom(self) -> int:
        """Return the worker to ask: one that has the files, or knows of them, before others."""
        known = {each.worker_id: each for each in self._mine()}

        def rank(worker_id: int) -> tuple[int, int]:
            file = known.get(worker_id)
            if file is None:
                return 3, worker_id
            best = {ModelFileState.ANALYZING: 0, ModelFileState.READY: 1}
            return best.get(file.state, 2), worker_id

        return min(self._workers, key=rank)

    def _mine(self) -> list[ModelFilePublic]:
        return [each for each in self._files if each.worker_id in self._workers]

    def _is_alike(self, model: ModelPublic | None) -> bool:
        return model is not None and _source(model) == _source(self._model)


def _source(model: ModelPublic) -> tuple[object, ...]:
    return model.source, model.huggingface_repo_id, model.huggingface_filename, model.huggingface_revision
