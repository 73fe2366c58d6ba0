"""What is known of a model whose files lie on a hub: the same for all workers, so one of them is asked for all.

When that one cannot read them, others are asked in turn: each has its own token, and its own way to the hub.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property

from gpustack.plugin import ModelFacts
from gpustack.schemas import ModelFilePublic, ModelFileState, ModelPublic, WorkerPublic
from gpustack.server.reconcile.questions import facts_of
from gpustack.server.reconcile.state import State

#: The facts of a file in one of these states hold; an error then is one of the download.
_KNOWN = (ModelFileState.READY, ModelFileState.ANALYZED, ModelFileState.DOWNLOADING, ModelFileState.ERROR)

#: So many are asked for one instance at most: a hub that refuses three would refuse five hundred.
_MOST_ASKED = 3


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

    def whom(self, asked: Collection[int]) -> int | None:
        """Return the worker to ask next: one that has the files, or knows of them, before others.

        Those that could not read them may do so at another time, so they come last; not those of ``asked``. None when
        all of these, or as many as are asked for one instance, could not.
        """
        failed = {each.worker_id for each in self._failed(asked)}
        left = self._workers - failed
        if not left or len(failed) >= _MOST_ASKED:
            return None
        known = {each.worker_id: each for each in self._mine()}

        def rank(worker_id: int) -> tuple[int, int]:
            file = known.get(worker_id)
            if file is None:
                return 3, worker_id
            if _unread(file):
                return 4, worker_id
            best = {ModelFileState.ANALYZING: 0, ModelFileState.READY: 1}
            return best.get(file.state, 2), worker_id

        return min(left, key=rank)

    def refusals(self, asked: Collection[int]) -> list[str]:
        """Return a line for each reason why some of ``asked`` could not read the files, and then who was asked."""
        if not (failed := self._failed(asked)):
            return []
        named: dict[str, list[str]] = {}
        for each in failed:
            reason = each.state_message or "the model's files could not be read"
            named.setdefault(reason, []).append(self._name(each.worker_id))
        others = len(self._workers - {each.worker_id for each in failed})
        more = f"; {others} more could be, and a new deployment asks others first" if others else ""
        if len(named) > 1:
            lines = [f"{', '.join(names)}: {reason}" for reason, names in named.items()]
            return [*lines, f"{len(failed)} workers were asked{more}"] if more else lines
        lines = [*named]
        if len(failed) > 1 or more:
            lines.append(f"asked: {', '.join(*named.values())}{more}")
        return lines

    def exhausted(self) -> bool:
        """Tell whether nobody is left to ask: all, or as many as are asked for one instance, could not read the files."""
        failed = {each.worker_id for each in self._files if _unread(each)}
        enough = self._workers <= failed or len(failed) >= _MOST_ASKED
        return bool(failed) and enough and self.answer(frozenset()) is None

    def _failed(self, asked: Collection[int]) -> list[ModelFilePublic]:
        """Return the answers of those that could not read the files, also of workers that are away by now."""
        return [each for each in self._files if each.worker_id in asked and _unread(each)]

    def _name(self, worker_id: int) -> str:
        worker = self._state.workers.get(worker_id)
        return f"worker {worker_id}" if worker is None else worker.name

    def _mine(self) -> list[ModelFilePublic]:
        return [each for each in self._files if each.worker_id in self._workers]

    def _is_alike(self, model: ModelPublic | None) -> bool:
        return model is not None and _source(model) == _source(self._model)


def _unread(file: ModelFilePublic) -> bool:
    return file.state is ModelFileState.ERROR and file.facts is None


def _source(model: ModelPublic) -> tuple[object, ...]:
    return model.source, model.huggingface_repo_id, model.huggingface_filename, model.huggingface_revision
