"""`gpustack defragment`."""

from __future__ import annotations

import json
from typing import Any

from support.fake_api import FakeApi, Reply

Cli = Any
FOUND = {
    "steps": [
        {
            "instance_id": 1, "instance_name": "tiny-a", "model_id": 1, "model_name": "tiny", "from_worker_id": 1,
            "from_worker": "one", "to_worker_id": 2, "to_worker": "two", "to_gpus": [0, 1],
        },
        {
            "instance_id": 2, "instance_name": "tiny-b", "model_id": 1, "model_name": "tiny", "from_worker_id": 1,
            "from_worker": "one", "to_worker_id": 3, "to_worker": "three", "to_gpus": [],
        },
    ],
    "placed": [
        {
            "instance_id": 9, "instance_name": "large-x", "model_id": 4, "model_name": "large", "worker_id": 1,
            "worker_name": "one", "gpus": [3],
        }
    ],
    "freed_gpus": [{"worker_id": 1, "worker_name": "one", "index": 2}],
}  # fmt: skip


def test_the_steps_and_what_they_are_good_for_are_said_in_order(cli: Cli, api: FakeApi) -> None:
    api.on("GET", "/v2/defragmentation", Reply(body=FOUND))
    assert cli("defragment").out.splitlines() == [
        "1. Start tiny-a on GPU 0, 1 of two, then drain it on one.",
        "2. Start tiny-b on three, then drain it on one.",
        "large-x, which waits, fits on GPU 3 of one then.",
        "GPU 2 of one is free then.",
    ]
    assert json.loads(cli("defragment", "--json").out) == FOUND


def test_without_steps_it_says_so(cli: Cli, api: FakeApi) -> None:
    api.on("GET", "/v2/defragmentation", Reply(body={}))
    assert cli("defragment").out == "There is nothing to gain by moving copies.\n"


def test_a_server_that_places_nothing_is_one_line(cli: Cli, api: FakeApi) -> None:
    api.on("GET", "/v2/defragmentation", Reply(404, {"code": 404, "reason": "NotFound", "message": "x"}))
    ended = cli("defragment")
    assert ended.status == 1
    assert len(ended.err.strip().splitlines()) == 1
