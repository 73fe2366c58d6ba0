"""Clusters: groups of workers."""

from __future__ import annotations

from gpustack.schemas.common import Record


class ClusterPublic(Record):
    """A cluster with its counts."""

    name: str
    description: str = ""
    provider: str = "Docker"
    is_default: bool = False
    state: str = "ready"
    workers: int = 0
    ready_workers: int = 0
    gpus: int = 0
    models: int = 0
