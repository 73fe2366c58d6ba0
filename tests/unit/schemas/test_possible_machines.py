"""What a worker says of itself is refused where no machine is like that, in one line that says what."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from gpustack.kit.text import GIB
from gpustack.schemas import Heartbeat, WorkerPublic, WorkerRegistration
from support.reconcile import a_worker

GPU: dict[str, Any] = {
    "uuid": "g",
    "index": 0,
    "vendor": "nvidia",
    "name": "L4",
    "memory": {"total": 24 * GIB},
}
JOINING: dict[str, Any] = {
    "name": "w",
    "ip": "10.0.0.1",
    "door_token": "0123456789abcdef",
    "worker_uuid": "12345678",
    "version": "1",
}


@pytest.mark.parametrize(
    ("status", "line"),
    [
        ({"memory": {"total": 4 * 10**18}}, "memory: total is 4000000000000000000 bytes"),
        ({"memory": {"total": GIB, "used": -1}}, "memory: used is -1 bytes"),
        ({"swap": {"total": 10**30}}, "swap: total is"),
        ({"gpu_devices": [{**GPU, "memory": {"total": 10**30}}]}, "memory of GPU 0: total is"),
        ({"gpu_devices": [{**GPU, "memory": {"others": 10**30}}]}, "memory of GPU 0: others is"),
        ({"gpu_devices": [GPU, GPU]}, "two GPUs have the same index"),
        ({"gpu_devices": [{**GPU, "index": -1}]}, "a GPU's index is -1"),
        (
            {"gpu_devices": [{**GPU, "index": each} for each in range(257)]},
            "257 GPUs; a worker has 256 at most",
        ),
    ],
)
def test_no_machine_is_like_that(status: dict[str, Any], line: str) -> None:
    for model, values in (
        (Heartbeat, {"status": status}),
        (WorkerRegistration, {**JOINING, "status": status}),
    ):
        with pytest.raises(ValidationError, match=line):
            model.model_validate(values)


def test_nor_is_so_much_kept_for_the_system() -> None:
    with pytest.raises(ValidationError, match=r"ram is 10{30} bytes; it is from 0 to"):
        WorkerRegistration.model_validate({**JOINING, "system_reserved": {"ram": 10**30}})


def test_what_was_stored_by_an_older_server_is_read_still() -> None:
    row = a_worker().model_dump(mode="json")
    row["status"]["memory"]["total"] = 4 * 10**18
    assert WorkerPublic.model_validate(row).status.memory.total == 4 * 10**18
