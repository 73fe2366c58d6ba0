"""``gpustack explain``: why copies run where they run, and why others wait."""

from __future__ import annotations

import json
from typing import Any

from support.fake_api import FakeApi, Reply, a_model, page

Cli = Any
SEAT = {"worker_id": 1, "worker_name": "w1", "ram_mib": 1024, "vram_mib": {"0": 8192}}


def explained(api: FakeApi, *instances: dict[str, Any], replicas: int = 1) -> None:
    api.on("GET", "/v2/models", Reply(body=page(a_model())))
    body = {"model_id": 1, "model_name": "tiny", "replicas": replicas, "ready_replicas": 0}
    api.on("GET", f"/v2/models/{a_model()['id']}/explain", Reply(body={**body, "instances": list(instances)}))


def an_instance(name: str = "tiny-abc", **more: Any) -> dict[str, Any]:
    return {
        "instance_id": 1,
        "instance_name": name,
        "state": "pending",
        "outcome": "waiting",
        "summary": "waiting for room: no worker has enough free memory now",
        "workers": 12,
        "filters": [
            {"name": "are in the model's cluster", "matched": 12, "asked": 12},
            {"name": "are ready", "matched": 9, "asked": 12},
        ],
        "near_misses": [
            {
                "worker_id": 1,
                "worker_name": "w1",
                "reason": "needs 20.0 GiB on GPU 0, 16.0 GiB of 24.0 GiB is free",
                "gpus": [{"index": 0, "needed_mib": 20480, "free_mib": 16384, "missing_mib": 4096}],
            }
        ],
        "remedies": [
            {
                "what": "with a context of 4096 tokens",
                "seats": [SEAT],
                "backend_parameters": ["--ctx-size=4096"],
            },
            {
                "what": "if an instance of other moved",
                "seats": [SEAT],
                "moves": [
                    {
                        "instance_id": 3,
                        "instance_name": "other-x",
                        "model_name": "other",
                        "to": [{**SEAT, "worker_name": "w2"}],
                    }
                ],
            },
        ],
        **more,
    }


def test_what_waits_is_told_with_what_is_missing_and_what_would_help(cli: Cli, api: FakeApi) -> None:
    explained(api, an_instance("tiny-a"), an_instance("tiny-b"), replicas=2)

    ended = cli("explain", "tiny")

    assert ended.status == 1
    assert ended.out.splitlines() == [
        "tiny: 0 of 2 ready",
        "",
        "tiny-a, tiny-b: waiting for room: no worker has enough free memory now",
        "  of 12 workers:",
        "    9 of 12 are ready",
        "  nearest:",
        "    w1: needs 20.0 GiB on GPU 0, 16.0 GiB of 24.0 GiB is free",
        "      GPU 0 is 4096 MiB short",
        "    and 11 workers more",
        "  it would fit:",
        "    with a context of 4096 tokens, on worker w1 (1.0 GiB RAM, 8.0 GiB on GPU 0)",
        "      parameters: --ctx-size=4096",
        "    if an instance of other moved, on worker w1 (1.0 GiB RAM, 8.0 GiB on GPU 0)",
        "      other-x would go to worker w2 (1.0 GiB RAM, 8.0 GiB on GPU 0)",
    ]


def test_what_runs_is_told_with_where_and_why_there(cli: Cli, api: FakeApi) -> None:
    explained(
        api,
        an_instance(
            state="running",
            outcome="placed",
            summary="runs on worker w1, GPU 0",
            seats=[SEAT],
            backend="llama-cpp",
            backend_version="1.2",
            reasons=["2 of 3 possible workers had enough free memory"],
            filters=[],
            near_misses=[],
            remedies=[],
            decision_id=5,
            decided_at="2026-01-02T03:04:05Z",
            replayed=True,
        ),
    )

    ended = cli("explain", "tiny")

    assert ended.status == 0
    assert ended.out.splitlines()[2:] == [
        "tiny-abc: runs on worker w1, GPU 0",
        "  worker w1 (1.0 GiB RAM, 8.0 GiB on GPU 0), with llama-cpp 1.2",
        "  - 2 of 3 possible workers had enough free memory",
        "  decided 2026-01-02 03:04:05 UTC, and would be again (record 5)",
    ]


def test_programs_get_all_of_it(cli: Cli, api: FakeApi) -> None:
    explained(api, an_instance())

    ended = cli("explain", "tiny", "--json")

    assert ended.status == 1
    told = json.loads(ended.out)
    assert told["instances"][0]["near_misses"][0]["gpus"][0]["missing_mib"] == 4096


def test_without_copies_there_is_nothing_to_explain(cli: Cli, api: FakeApi) -> None:
    explained(api, replicas=0)
    ended = cli("explain", "tiny")
    assert (ended.status, ended.out.splitlines()[1]) == (0, "  no copy of it is wanted")


def test_nothing_that_would_help_is_said(cli: Cli, api: FakeApi) -> None:
    explained(api, an_instance(remedies=[]))
    assert "nothing that was tried would make it fit" in cli("explain", "tiny").out


def test_a_model_that_is_none_is_one_line(cli: Cli, api: FakeApi) -> None:
    api.on("GET", "/v2/models", Reply(body=page()))
    ended = cli("explain", "nope")
    assert ended.status == 1
    assert ended.err.startswith("Error: ")
    assert "nope" in ended.err
