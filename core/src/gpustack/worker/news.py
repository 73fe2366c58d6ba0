"""What of a machine's figures the server should not wait for: room on its GPUs that others took or gave back."""

from __future__ import annotations

from gpustack.schemas import GpuStatus, WorkerStatus

#: Of a GPU's memory: smaller moves wait for the next heartbeat with figures. Bytes, and a part of the whole.
_LEAST, _PART = 256 << 20, 0.01


def is_news(told: WorkerStatus | None, now: WorkerStatus) -> bool:
    """Tell whether what is placed on the GPUs may depend on what has changed since the server was ``told``."""
    if told is None:
        return bool(now.gpu_devices)
    before = {gpu.uuid: gpu for gpu in told.gpu_devices}
    return before.keys() != {gpu.uuid for gpu in now.gpu_devices} or any(
        _moved(before[gpu.uuid], gpu) for gpu in now.gpu_devices
    )


def _moved(before: GpuStatus, now: GpuStatus) -> bool:
    if before.faults != now.faults:
        return True
    least = max(_LEAST, int(now.memory.total * _PART))
    return abs(_theirs(before) - _theirs(now)) >= least


def _theirs(gpu: GpuStatus) -> int:
    """Return what is not our engines'; all that is used, where nobody tells."""
    return gpu.memory.used if gpu.memory.others is None else gpu.memory.others
