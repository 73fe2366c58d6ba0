"""``gpustack simulate``: described and recorded fleets, without a server."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from gpustack.scheduling import Placed
from gpustack.scheduling.records import RecordedFleet, entries
from support.fake_api import FakeApi, Reply
from support.fleets import Odds

Cli = Any
FLEET = """\
workers:
  - name: w
    count: 2
    gpus: {count: 2, memory: 24GiB}
"""
WORKLOAD = """\
duration: 1h
requests:
  - name: chat
    every: 1m
    lasts: 10m
    vram: 10GiB
  - name: large
    every: 10m
    lasts: 10m
    gpus: 2
    vram: 20GiB
"""


def simulate(cli: Cli, *words: object) -> Any:
    return cli("simulate", *map(str, words))


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    fleet, workload = tmp_path / "fleet.yaml", tmp_path / "workload.yaml"
    fleet.write_text(FLEET)
    workload.write_text(WORKLOAD)
    return fleet, workload


@pytest.fixture
def record(tmp_path: Path) -> Path:
    """Return a file of 40 decisions, the last of which was placed."""
    odds = Odds(17)
    fleet = RecordedFleet(odds.workers(6))
    for number in count(1):
        assert number < 200, "the fleet is full; take another seed"
        answer = fleet.decide(odds.request(number, 6))
        if isinstance(answer, Placed):
            for each in answer.holdings():
                fleet.hold(each)
            if number >= 40:
                break
    path = tmp_path / "run.jsonl"
    path.write_text("".join(each.write() + "\n" for each in entries(fleet.take(1000))))
    return path


def test_a_workload_is_tried_without_a_server(cli: Cli, files: tuple[Path, Path]) -> None:
    ended = simulate(cli, *files, "--seed", "3")
    assert ended.status == 0
    out = ended.out
    assert out.startswith("2 workers with 4 GPUs, 60.0 min, seed 3\n")
    for each in ("placed", "wait, 99 of 100", "GPU memory used", "fragmentation", "large"):
        assert each in out
    assert simulate(cli, *files, "--seed", "3").out == out
    assert simulate(cli, *files, "--seed", "4").out != out


def test_two_policies_are_compared_on_the_same_workload(cli: Cli, files: tuple[Path, Path]) -> None:
    one, two = json.loads(simulate(cli, *files, "--compare", "best-fit", "--json").out)
    assert (one["policy"], two["policy"]) == ("whole", "best-fit")
    assert one["arrived"] == two["arrived"]
    assert one["placement_rate"] == one["placed"] / one["arrived"]
    table = simulate(cli, *files, "--compare", "best-fit").out
    assert "WHOLE" in table
    assert "BEST-FIT" in table


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("fleet", "24GiB", "lots", ":4: workers[0].gpus.memory: expected a size such as 80GiB, not 'lots'"),
        ("fleet", "name: w", "nam: w", ":2: workers[0].nam: a worker has no 'nam'; there are: name, count,"),
        ("fleet", "count: 2\n", "count: [\n", ":5: "),
        ("fleet", "    count: 2\n", "    count: 2\n    count: 3\n", ":4: count is there twice"),
        (
            "workload",
            "vram: 10GiB",
            "vram: 10GiB\n    strategy: luck",
            ":7: requests[0].strategy: there is no 'luck'",
        ),
        ("workload", "duration: 1h\n", "", ":1: duration is missing"),
        ("workload", "    every: 10m\n", "", ":7: requests[1]: it comes either"),
    ],
)
def test_wrong_yaml_is_one_line_with_file_and_line(
    cli: Cli, files: tuple[Path, Path], name: str, old: str, new: str, said: str
) -> None:
    path = next(each for each in files if each.stem == name)
    path.write_text(path.read_text().replace(old, new, 1))
    ended = simulate(cli, *files)
    assert ended.status == 2
    assert f"{path}{said}" in ended.err
    assert ended.err.count("\n") == 1
    assert ended.out == ""


def test_files_that_cannot_be_read_are_one_line(cli: Cli, files: tuple[Path, Path], tmp_path: Path) -> None:
    empty, binary = tmp_path / "empty.yaml", tmp_path / "binary.yaml"
    empty.write_text("")
    binary.write_bytes(b"\xff\xfe\x00")
    for path, said in (
        (tmp_path / "none.yaml", "No such file"),
        (empty, "nothing is in it"),
        (binary, "no text in UTF-8"),
    ):
        ended = simulate(cli, path, files[1])
        assert (ended.status, ended.err.count("\n")) == (2, 1)
        assert said in ended.err


def test_a_record_is_decided_again(cli: Cli, record: Path) -> None:
    total = len(record.read_text().splitlines())
    ended = simulate(cli, record)
    assert (ended.status, ended.out) == (0, f"{total} decisions, {total} as recorded, 0 otherwise\n")
    assert json.loads(simulate(cli, record, "--json").out) == {
        "decisions": total,
        "same": total,
        "others": [],
    }


def test_a_decision_that_comes_out_otherwise_is_told(cli: Cli, record: Path) -> None:
    lines = record.read_text().splitlines()
    last = json.loads(lines[-1])
    last["verdict"]["placed"]["worker_id"] += 100
    record.write_text("\n".join([*lines[:-1], json.dumps(last)]) + "\n")
    ended = simulate(cli, record)
    assert ended.status == 1
    assert f"run.jsonl:{len(lines)}: instance {len(lines)} of model: placed on worker 1" in ended.out
    assert ended.out.endswith("1 otherwise\n")


def test_a_record_is_a_fleet_for_a_workload(cli: Cli, record: Path, files: tuple[Path, Path]) -> None:
    files[1].write_text("duration: 1h\nrequests: [{name: a, at: 0, count: 50}]\n")
    told = json.loads(simulate(cli, record, files[1], "--json").out)
    assert told["workers"] == 6
    assert told["utilisation"] > 0, "what ran at the end of the record runs on"


def test_a_damaged_record_is_one_line(cli: Cli, record: Path) -> None:
    lines = record.read_text().splitlines()
    record.write_text("\n".join([lines[0], '{"at": 1}']))
    ended = simulate(cli, record)
    assert ended.status == 2
    assert "run.jsonl:2: a decision has 'request', this has not" in ended.err
    record.write_text("\n".join(lines[1:]))
    assert "run.jsonl:1: the record begins in the middle" in simulate(cli, record).err


def test_the_decisions_of_a_server_are_written_to_a_file(
    cli: Cli, api: FakeApi, record: Path, tmp_path: Path
) -> None:
    api.on("GET", "/v2/decisions", Reply(pieces=[record.read_bytes()[:700], record.read_bytes()[700:]]))
    path = tmp_path / "mine.jsonl"
    ended = simulate(cli, "--record", path)
    total = len(record.read_text().splitlines())
    assert (ended.status, ended.out) == (0, f"{total} decisions written to {path}\n")
    assert path.read_bytes() == record.read_bytes()


def test_what_makes_no_sense_together_is_told(cli: Cli, files: tuple[Path, Path], tmp_path: Path) -> None:
    assert "which fleet?" in simulate(cli).err
    ended = simulate(cli, files[0], "--record", tmp_path / "x")
    assert ended.status == 2
    assert not (tmp_path / "x").exists()
