"""Finds NVIDIA GPUs through NVML, the library of their driver."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gpustack.plugin import GpuDetector, hookimpl
from gpustack_gpu_nvidia.detector import NvidiaDetector


@hookimpl
def register_gpu_detectors() -> Iterable[type[GpuDetector[Any]]]:
    """Return the one detector there is here."""
    return [NvidiaDetector]
