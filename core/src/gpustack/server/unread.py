"""What may help a model whose files no worker that it asks for has read: there is nothing to be estimated or tried yet."""

from __future__ import annotations

from collections.abc import Iterator

from gpustack.schemas import ModelPublic, Source, WorkerPublic, WorkerState
from gpustack.schemas.explanations import Remedy
from gpustack.server.reconcile.state import State

#: Workers that are named, of those without the labels and of those that are not ready.
_MOST = 2
_FIRST = "its files must be read there first"


def unread(state: State, model: ModelPublic) -> list[Remedy]:
    """Return which labels and which workers would let the files be read, without a place; nothing when they were."""
    if model.source is Source.HUGGINGFACE and any(each.facts is not None for each in state.files_of(model)):
        return []
    workers = [
        each
        for each in state.workers.values()
        if each.cluster_id == model.cluster_id and state.file(each.id, model) is None
    ]
    return [Remedy(what=each, seats=[]) for each in (*_labels(model, workers), *_ready(model, workers))]


def _labels(model: ModelPublic, workers: list[WorkerPublic]) -> Iterator[str]:
    some = [each for each in workers if each.state is WorkerState.READY and _lacking(model, each)]
    for each in some[:_MOST]:
        lacking = _lacking(model, each)
        yield f"with the label{'s' if len(lacking) > 1 else ''} {', '.join(lacking)} on worker {each.name}; {_FIRST}"
    if some:
        yield "without its worker selector; its files must be read first"


def _ready(model: ModelPublic, workers: list[WorkerPublic]) -> Iterator[str]:
    away = [each for each in workers if each.state is not WorkerState.READY and not _lacking(model, each)]
    for each in away[:_MOST]:
        yield f"once worker {each.name} is ready; {_FIRST}"


def _lacking(model: ModelPublic, worker: WorkerPublic) -> list[str]:
    """Return the labels that the model asks for and the worker has not."""
    wanted = sorted(model.worker_selector.items())
    return [f"{key}={value}" for key, value in wanted if worker.labels.get(key) != value]
