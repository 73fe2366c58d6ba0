"""Why a model runs where it runs, and what is missing where it waits, on a whole GPUStack."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.running import Running, eventually

pytestmark = pytest.mark.xdist_group("e2e-placement")


def test_placement_is_explained_recorded_and_decided_again(stack: Running, tiny_gguf: Path) -> None:
    stack.cli("deploy", str(tiny_gguf), "--name", "fits")
    (one,) = json.loads(stack.cli("explain", "fits", "--json").stdout)["instances"]
    assert (one["outcome"], one["replayed"]) == ("placed", True)
    assert "it was the only worker that passed every filter" in one["reasons"]

    stack.cli("deploy", str(tiny_gguf), "--name", "huge", "--no-wait", "-p", "--parallel=100000")

    def waits() -> bool:
        return stack.cli("explain", "huge", check=False).returncode == 1

    eventually(waits, "the huge model is refused", seconds=30)
    told = stack.cli("explain", "huge", check=False).stdout
    assert "no worker is large enough, even when empty" in told
    assert "MiB short" in told
    assert "requests at a time, on worker" in told

    record = stack.home / "decisions.jsonl"
    stack.cli("simulate", "--record", str(record))
    again = stack.cli("simulate", str(record)).stdout
    assert again.endswith(" 0 otherwise\n")
    assert len(record.read_text().splitlines()) >= 2
