"""Builders of what is stored: `a_model_wanted("tiny")`, `a_registration("box")`."""

from __future__ import annotations

from typing import Any

from gpustack.schemas import GpuStatus, ModelCreate, WorkerRegistration, WorkerStatus


def a_model_wanted(name: str = "tiny", **fields: Any) -> ModelCreate:
    return ModelCreate.model_validate({"name": name, "local_path": f"/models/{name}.gguf", **fields})


def a_registration(name: str = "box", **fields: Any) -> WorkerRegistration:
    values = {
        "name": name,
        "ip": "127.0.0.1",
        "port": 10150,
        "door_token": "d" * 32,
        "worker_uuid": f"uuid-of-{name}",
        "version": "0.1.0",
        **fields,
    }
    return WorkerRegistration.model_validate(values)


def a_status(gpus: int = 0) -> WorkerStatus:
    devices = [GpuStatus(uuid=f"gpu-{i}", index=i, vendor="nvidia", name="H200") for i in range(gpus)]
    return WorkerStatus(gpu_devices=devices)


def a_source(path: str = "/m.gguf") -> ModelCreate:
    """Return something whose files are at ``path`` on the worker."""
    return a_model_wanted("any", local_path=path)
