"""What of a row makes a difference to where instances can run."""

from __future__ import annotations

from gpustack.schemas import ModelPublic, WorkerPublic
from gpustack.server.reconcile.notes import Others
from gpustack.server.reconcile.questions import no_containers


def wish_of(model: ModelPublic) -> tuple[object, ...]:
    """Return what of a model decides how and where it can run."""
    divided = model.distributed_inference_across_workers
    return model.spec_digest, model.worker_selector, model.cluster_id, divided


def offers_of(worker: WorkerPublic) -> tuple[object, ...]:
    """Return what of a worker decides who fits there, without what is measured."""
    gpus = [(gpu.index, gpu.uuid, gpu.memory.total, gpu.faults) for gpu in worker.status.gpu_devices]
    return (
        worker.state,
        worker.cluster_id,
        worker.labels,
        worker.catalogue,
        worker.system_reserved,
        worker.status.memory.total,
        gpus,
        no_containers(worker),
    )


def fell(old: Others, new: Others) -> bool:
    """Tell whether others use less than before, somewhere."""
    return new.ram < old.ram or any(size < old.vram.get(index, 0) for index, size in new.vram.items())
