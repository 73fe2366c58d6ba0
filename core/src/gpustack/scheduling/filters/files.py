"""The filter for the model's files."""

from __future__ import annotations

from gpustack.scheduling.request import Request
from gpustack.scheduling.snapshot import Worker


def files_ready(worker: Worker, request: Request) -> str | None:
    """Pass workers that have read the model's files."""
    files = request.files_on(worker)
    if files is None:
        return "has not looked for the model's files yet"
    return None if files.ready else files.reason or "has not the model's files"
