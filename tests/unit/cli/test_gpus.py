"""``gpustack gpus``."""

from __future__ import annotations

import json
from typing import Any

import pytest

from support.fake_api import FakeApi, Reply, page

Cli = Any


def a_gpu(index: int, **fields: Any) -> dict[str, Any]:
    return {
        "id": f"box:cuda:{index}",
        "uuid": f"GPU-{index}",
        "index": index,
        "vendor": "nvidia",
        "name": "H100",
        "type": "cuda",
        "worker_id": 1,
        "worker_name": "box",
        "worker_ip": "10.0.0.2",
        "cluster_id": 1,
        "memory": {"total": 80 << 30, "used": 3 << 30, "others": 1 << 30},
        **fields,
    }


def test_what_there_is_and_how_it_is_used(cli: Cli, api: FakeApi) -> None:
    api.on(
        "GET",
        "/v2/gpu-devices",
        Reply(
            body=page(
                a_gpu(1, memory={"total": 80 << 30, "used": 0}, faults=["it has fallen off the bus"]),
                a_gpu(
                    0,
                    core_utilization_rate=73.4,
                    temperature=61,
                    power=700,
                    power_used=412.6,
                    link_group="nvlink0",
                    numa_node=1,
                ),
            )
        ),
    )

    header, first, second = cli("gpus").out.splitlines()

    assert header.split()[:2] == ["ID", "NAME"]
    for word in (
        "box:cuda:0",
        "H100",
        "3.0 GiB of 80.0 GiB",
        "1.0 GiB",
        "73 %",
        "61 °C",
        "413 of 700 W",
        "nvlink0",
        "ok",
    ):
        assert word in first
    assert second.split("  ")[0] == "box:cuda:1"
    assert "it has fallen off the bus" in second
    assert [each["index"] for each in json.loads(cli("gpus", "--json").out)] == [0, 1]


@pytest.mark.parametrize("as_json", [False, True])
def test_machines_without_any(cli: Cli, api: FakeApi, as_json: bool) -> None:
    api.on("GET", "/v2/gpu-devices", Reply(body=page()))

    ended = cli("gpus", *(["--json"] if as_json else []))

    assert ended.status == 0
    assert ended.out.strip() == ("[]" if as_json else "")
    assert ("models run on the processor" in ended.err) is not as_json
