"""GPUs that are chosen by hand for a model: which of them there are, and how many of them one copy gets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from gpustack.schemas import GpuStatus, ModelPublic, WorkerPublic
from gpustack.schemas.gpu_selection import GpuName, GpuSelector

#: GPUs that are not there and are told of one by one.
_MOST = 8


def choice(model: ModelPublic, workers: Iterable[WorkerPublic]) -> Mapping[str, frozenset[int]] | None:
    """Return the chosen GPUs by worker name and index, without those that are of another type; None allows all.

    Workers and GPUs that nobody has are in it too: they may come.
    """
    if model.gpu_selector is None:
        return None
    found = model.gpu_selector.indexes()
    return found | {each.name: chosen_on(each, model.gpu_selector) for each in workers if each.name in found}


def chosen_on(worker: WorkerPublic, selector: GpuSelector) -> frozenset[int]:
    """Return the indexes of the chosen GPUs of one worker, without those that are of another type."""
    types = {each.index: type_of(each) for each in worker.status.gpu_devices}
    names = selector.by_worker.get(worker.name, ())
    return frozenset(each.index for each in names if types.get(each.index, each.type) == each.type)


def counts(model: ModelPublic, present: int) -> list[int]:
    """Return how many of the chosen GPUs one copy may get, the best first, where ``present`` of them are.

    Without a number it is the copy's share of all that were chosen, rounded down to a power of two; then halves of it.
    """
    selector = model.gpu_selector
    if selector is None:
        return []
    if selector.gpus_per_replica is not None:
        return [selector.gpus_per_replica]
    limits = model.scaled_between
    copies = max(1, model.replicas, limits[1] if limits is not None else 0)
    most = max(1, min(present, len(selector.gpu_ids) // copies))
    return [1 << power for power in reversed(range(most.bit_length()))]


def missing(model: ModelPublic, workers: Iterable[WorkerPublic]) -> list[str]:
    """Return a line for each chosen GPU that cannot be used, and why not."""
    if model.gpu_selector is None:
        return []
    wanted = model.gpu_selector.by_worker
    named = {each.name: each for each in workers if each.name in wanted}
    lines = [
        f"the chosen GPU {name} {why}"
        for names in wanted.values()
        for name in names
        if (why := _why_not(named.get(name.worker), name, model))
    ]
    if len(lines) > _MOST:
        lines[_MOST:] = [f"and {len(lines) - _MOST} more of the chosen GPUs cannot be used"]
    return lines


def _why_not(worker: WorkerPublic | None, name: GpuName, model: ModelPublic) -> str:
    if worker is None:
        return "is on a worker that has not joined; `gpustack gpus` lists what there is"
    if worker.cluster_id != model.cluster_id:
        return "is on a worker of another cluster"
    gpu = next((each for each in worker.status.gpu_devices if each.index == name.index), None)
    if gpu is None or type_of(gpu) != name.type:
        return "is not there; `gpustack gpus` lists what there is"
    return f"is faulty: {'; '.join(gpu.faults)}" if gpu.faults else ""


def type_of(gpu: GpuStatus) -> str:
    """Return the middle part of the GPU's id."""
    return gpu.type or gpu.vendor
