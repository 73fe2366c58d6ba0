"""Counters add up over processes and never go back; gauges end with their process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpustack.dataplane.metering.exposition import render
from gpustack.dataplane.metering.metrics import Metrics
from gpustack.dataplane.metering.numbers import Slot
from gpustack.kit.errors import GPUStackError


def count(slot: Slot, amount: int) -> None:
    slot.counters("requests_total", "Requests.", "model", "status").of('m"\\\n', 200).add(amount)
    slot.gauges("now", "Now.").of().add(amount)
    times = slot.histograms("seconds", "Time.", "model", bounds=(0.1, 1)).of("m")
    for value in (0.05, 0.1, 0.5, 7):
        times.observe(value)


def test_slots_are_summed_and_gauges_of_the_dead_left_out(tmp_path: Path) -> None:
    with Slot(tmp_path, 0) as one, Slot(tmp_path, 1) as other:
        count(one, 3)
        count(other, 4)
        both = render(tmp_path)
    with Slot(tmp_path, 0):
        later = render(tmp_path)

    assert both == (
        "# HELP now Now.\n# TYPE now gauge\nnow 7\n"
        "# HELP requests_total Requests.\n# TYPE requests_total counter\n"
        'requests_total{model="m\\"\\\\\\n",status="200"} 7\n'
        "# HELP seconds Time.\n# TYPE seconds histogram\n"
        'seconds_bucket{model="m",le="0.1"} 4\nseconds_bucket{model="m",le="1"} 6\n'
        'seconds_bucket{model="m",le="+Inf"} 8\n'
        'seconds_sum{model="m"} 15.3\nseconds_count{model="m"} 8\n'
    )
    assert later == both.replace("now 7", "now 0")


def test_a_restarted_process_goes_on_counting(tmp_path: Path) -> None:
    program = f"""
import os, signal
from pathlib import Path
from gpustack.dataplane.metering.numbers import Slot
slot = Slot(Path({str(tmp_path)!r}), 0).__enter__()
slot.counters("a", "A.", "x").of("y").add(5)
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", program], check=False, timeout=60)
    with (tmp_path / "0.index").open("ab") as index:
        index.write(b'1 ["counter", "b')  # it was about to count something else

    with Slot(tmp_path, 0) as slot:
        counters = slot.counters("a", "A.", "x")
        counters.of("z").add()
        counters.of("y").add()
        assert (counters.of("y").value, counters.of("z").value) == (6, 1)
    assert 'a{x="y"} 6\na{x="z"} 1\n' in render(tmp_path)


def test_a_slot_is_one_process_s_own(tmp_path: Path) -> None:
    with Slot(tmp_path, 0), pytest.raises(GPUStackError, match="another process counts in slot 0"):
        Slot(tmp_path, 0).__enter__()


def test_without_room_for_more_series_requests_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Slot(tmp_path, 0, room=80) as slot:
        counters = slot.counters("a", "A.", "x")
        for n in range(100):
            counters.of(n).add()
    assert render(tmp_path).count("a{") == 16
    assert len(caplog.messages) == 1


def test_the_folder_may_be_missing_or_hold_anything(tmp_path: Path) -> None:
    assert render(tmp_path / "missing") == ""
    (tmp_path / "0.index").write_bytes(b'0 ["counter"]\n\xff\n7 []\n1 [\n')
    (tmp_path / "0.values").write_bytes(b"123")
    assert render(tmp_path) == ""
    assert (tmp_path / "0.lock").exists()


@given(st.lists(st.floats(0, 100), max_size=20))
def test_a_histogram_counts_what_prometheus_defines(values: list[float]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        with Slot(Path(folder), 0, room=100) as slot:
            seconds = slot.histograms("s", "S.", bounds=(1, 10)).of()
            for value in values:
                seconds.observe(value)
        text = render(Path(folder))
    for edge, bound in (("1", 1), ("10", 10), ("+Inf", 1000)):
        assert f's_bucket{{le="{edge}"}} {sum(value <= bound for value in values)}\n' in text


def test_all_that_a_gateway_counts_has_a_place(tmp_path: Path) -> None:
    with Slot(tmp_path, 0) as slot:
        metrics = Metrics(slot)
        metrics.requests.of("m", 200).add()
        metrics.time_to_first_token.of("m").observe(0.2)
        metrics.journal_lost.of().add()

    assert 'gpustack_gateway_requests_total{model="m",status="200"} 1' in render(tmp_path)
    assert "gpustack_gateway_usage_records_lost_total 1" in render(tmp_path)
