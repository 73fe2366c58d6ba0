"""Each small file of the data directory in each bad state: it is recovered, or named in one line."""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gpustack import __version__
from gpustack.app.rundir import RunDir
from gpustack.client.local import NothingRuns, cli_token, running_state
from gpustack.db.embedded import port as ports
from gpustack.db.embedded.cluster import recorded_password
from gpustack.kit.errors import GPUStackError
from gpustack.kit.paths import write_atomic
from gpustack.plugin import PipxPackage
from gpustack.server.config import kept_secret
from gpustack.worker.artifacts.receipts import Receipt, read_receipt, write_receipt
from gpustack.worker.artifacts.recipe import Recipe
from gpustack.worker.identity import Identity
from gpustack.worker.runners.records import EngineRecord, read_records, write_record

NOBODY = 65534
# Found now: somebody else may not be able to read where Python lies.
codecs.lookup("ascii")


@contextlib.contextmanager
def somebody_else() -> Iterator[None]:
    """Be a user whom modes bind; as root that is nobody."""
    if os.geteuid() != 0:
        yield
        return
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A data directory that somebody else may write to, too, as pytest's own are not."""
    place = Path(tempfile.mkdtemp(prefix="gpustack-damage-"))
    place.chmod(0o777)
    yield place
    shutil.rmtree(place)


def claimed(data_dir: Path) -> None:
    held = RunDir(data_dir)
    held.claim()
    held.publish(
        {"pid": 1, "started": 0.0, "url": "http://h", "version": "1", "data_dir": "d", "log_dir": "l"}
    )
    assert len(cli_token(data_dir)) == 64
    assert (data_dir / "version").read_text().strip() == __version__
    held.release()


def identified(data_dir: Path) -> None:
    identity = Identity.load(data_dir / "worker")
    assert len(identity.worker_uuid) == 36
    assert len(identity.door_token) > 30
    again = Identity.load(data_dir / "worker")
    assert replace(again, start=identity.start) == identity


def records(data_dir: Path) -> None:
    read_records(data_dir / "run")
    write_record(
        data_dir / "run",
        EngineRecord(instance_id=7, instance_name="seven", port=1, log_path="", argv_digest=""),
    )
    assert [each.instance_id for each in read_records(data_dir / "run")] == [7]


def installed(data_dir: Path) -> None:
    link = data_dir / "engine_1"
    read_receipt(link)
    (data_dir / "engine").write_text("engine")
    link.unlink(missing_ok=True)
    link.symlink_to(data_dir / "engine")
    package = PipxPackage(package="engine", version="1", command="engine")
    write_receipt(link, Receipt.of(link, Recipe(backend="b", package=package)))
    assert read_receipt(link) is not None


def secret(data_dir: Path) -> None:
    assert kept_secret(data_dir / "token") == kept_secret(data_dir / "token")


def port(data_dir: Path) -> None:
    chosen = ports.choose(data_dir / "port")
    ports.remember(data_dir / "port", chosen)
    assert ports.recorded(data_dir / "port") == chosen


def password(data_dir: Path) -> None:
    found = recorded_password(data_dir / "password")
    assert found in ("", "p" * 43)


def nothing_runs(data_dir: Path) -> None:
    with pytest.raises(NothingRuns):
        running_state(data_dir)


#: File, a good content, who reads it.
FILES: list[tuple[str, bytes, Callable[[Path], None]]] = [
    ("gpustack.lock", b"4242", claimed),
    ("version", __version__.encode(), claimed),
    ("run/cli_token", b"c" * 64, claimed),
    ("run/supervisor.json", json.dumps({"pid": 4242, "started": 1.0, "url": "http://h"}).encode(), claimed),
    (
        "run/supervisor.json",
        json.dumps({"pid": 4242, "started": 1.0, "url": "http://h"}).encode(),
        nothing_runs,
    ),
    ("token", b"t" * 64, secret),
    ("worker/worker_uuid", b"0b1c8d0e-5c5d-4b0e-9d5e-3b6f4c1d2a3b", identified),
    ("worker/door_token", b"d" * 43, identified),
    ("worker/credential", b"k" * 43, identified),
    ("run/instances/7.json", json.dumps({"instance_id": 7, "port": 4000, "pid": 1}).encode(), records),
    ("engine_1.json", json.dumps({"backend": "b", "version": "1", "wheel": ""}).encode(), installed),
    ("port", b"15432\n", port),
    ("password", b"p" * 43, password),
]
DAMAGE: dict[str, Callable[[Path, bytes], None]] = {
    "empty": lambda path, _: path.write_bytes(b""),
    "half": lambda path, good: path.write_bytes(good[: len(good) // 2]),
    "garbage": lambda path, _: path.write_bytes(bytes(range(256))),
    "zeros": lambda path, good: path.write_bytes(bytes(len(good))),
    "other JSON": lambda path, _: path.write_bytes(b'[1, {"pid": []}]'),
    "directory": lambda path, _: path.mkdir(),
    "unreadable": lambda path, good: path.touch(mode=0),
    "dangling": lambda path, _: path.symlink_to("nowhere"),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(
    ("name", "good", "reader"), FILES, ids=lambda value: getattr(value, "__name__", str(value)[:24])
)
def test_it_is_recovered_or_named(
    data_dir: Path, name: str, good: bytes, reader: Callable[[Path], None], damage: str
) -> None:
    with somebody_else() if damage != "unreadable" else contextlib.nullcontext():
        path = data_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        DAMAGE[damage](path, good)
    for each in (data_dir, *data_dir.rglob("*")):
        if each.is_dir():
            each.chmod(0o777)
    with somebody_else():
        said = refusal_of(reader, data_dir)
    if damage in MENDABLE:
        assert said is None
    elif said is not None:
        assert path.name in said
        assert "\n" not in said


#: What an interrupted write, or a full disk, leaves; the rest somebody has done.
MENDABLE = ("empty", "half")


def refusal_of(reader: Callable[[Path], None], data_dir: Path) -> str | None:
    try:
        reader(data_dir)
    except (GPUStackError, OSError) as error:
        return str(error)
    return None


def test_what_a_killed_write_left_is_removed(data_dir: Path) -> None:
    held = RunDir(data_dir)
    held.claim()
    held.release()
    mine = data_dir / ".mine"
    mine.write_text("kept")
    left = [data_dir / ".token.abcd.tmp", data_dir / "run" / ".cli_token.x_1.tmp", data_dir / ".write-test-1"]
    left += [data_dir / "run" / each / ".7.json.abcdef.tmp" for each in ("instances", "doors", "memories")]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.write_text("half")
    held.claim()
    held.release()
    assert not [path for path in left if path.exists()]
    assert mine.exists()


def test_a_write_that_fails_names_the_file_and_leaves_the_old_one(data_dir: Path) -> None:
    path = data_dir / "kept"
    path.write_text("old")
    data_dir.chmod(0o555)
    with somebody_else(), pytest.raises(PermissionError) as raised:
        write_atomic(path, "new")
    data_dir.chmod(0o777)
    assert raised.value.filename == str(path)
    assert path.read_text() == "old"
    assert [each.name for each in data_dir.iterdir()] == ["kept"]
