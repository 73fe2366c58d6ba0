"""Filters that need only the worker and the wish of the model."""

from __future__ import annotations

from gpustack.scheduling.request import Request
from gpustack.scheduling.snapshot import Worker


def in_cluster(worker: Worker, request: Request) -> str | None:
    """Pass workers of the model's cluster."""
    return None if worker.cluster_id == request.cluster_id else "is in another cluster"


def selected(worker: Worker, request: Request) -> str | None:
    """Pass workers that carry every label of the model's worker selector with its value."""
    lacking = [
        f"{key}={value}" for key, value in sorted(request.selector.items()) if worker.labels.get(key) != value
    ]
    return f"lacks the label {', '.join(lacking)}" if lacking else None


def ready(worker: Worker, request: Request) -> str | None:
    """Pass workers that can take instances now."""
    if worker.ready:
        return None
    return f"is not ready: {worker.state_message}" if worker.state_message else "is not ready"


def chosen(worker: Worker, request: Request) -> str | None:
    """Pass workers with a GPU that was chosen by hand, when there is such a choice."""
    if request.gpus is None:
        return None
    indexes = request.gpus.get(worker.name)
    if not indexes:
        return "has none of the chosen GPUs"
    if indexes & {gpu.index for gpu in worker.gpus}:
        return None
    numbers = ", ".join(map(str, sorted(indexes)))
    return f"the chosen {'GPUs' if len(indexes) > 1 else 'GPU'} {numbers} cannot be used there"
