"""Moves of instances that would make room."""

from __future__ import annotations

from gpustack.schemas.common import Output


class DefragmentationStep(Output):
    """Start the instance anew on ``to_worker``, and drain it on ``from_worker`` when that one runs."""

    instance_id: int
    instance_name: str
    model_id: int
    model_name: str
    from_worker_id: int
    from_worker: str
    to_worker_id: int
    to_worker: str
    #: Indexes of the GPUs there; none for the processor.
    to_gpus: list[int] = []


class RoomForInstance(Output):
    """An instance that waits for room and gets it by the steps."""

    instance_id: int
    instance_name: str
    model_id: int
    model_name: str
    worker_id: int
    worker_name: str
    gpus: list[int] = []


class FreedGpu(Output):
    """A GPU that nothing of GPUStack's is on after the steps."""

    worker_id: int
    worker_name: str
    index: int


class Defragmentation(Output):
    """The answer of ``GET /v2/defragmentation``: a proposal. Without steps there is nothing to gain."""

    steps: list[DefragmentationStep] = []
    placed: list[RoomForInstance] = []
    freed_gpus: list[FreedGpu] = []
