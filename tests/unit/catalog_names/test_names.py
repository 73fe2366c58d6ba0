"""A name that is typed where a path could stand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gpustack.cli import complete
from gpustack.cli.sources import HubOptions, read_source
from gpustack.kit.errors import InvalidInput, NotFound

LOCAL = cast("Any", SimpleNamespace(local=True, url="http://127.0.0.1"))
REMOTE = cast("Any", SimpleNamespace(local=False, url="http://192.0.2.1"))
DEMO = ({"source": "bundled", "bundled_name": "demo"}, "demo")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(text: str, connection: Any = LOCAL) -> tuple[dict[str, str], str]:
    return read_source(text, HubOptions(), connection, lambda: ["demo", "demo-embedding"])


@pytest.mark.parametrize("text", ["demo", "bundled:demo"])
@pytest.mark.parametrize("connection", [LOCAL, REMOTE])
def test_a_name_of_the_catalog_needs_no_path(text: str, connection: Any) -> None:
    assert read(text, connection) == DEMO


def test_a_file_of_another_name_is_a_path(folder: Path) -> None:
    (folder / "tiny.gguf").touch()
    (folder / "weights").mkdir()
    assert read("tiny.gguf") == ({"local_path": str(folder / "tiny.gguf")}, str(folder / "tiny.gguf"))
    assert read("weights")[0] == {"local_path": str(folder / "weights")}


def test_what_may_mean_either_is_asked_back(folder: Path) -> None:
    (folder / "demo").mkdir()
    with pytest.raises(InvalidInput, match=r"write bundled:demo or \./demo$"):
        read("demo")
    assert read("bundled:demo") == DEMO
    assert read("./demo")[0] == {"local_path": str(folder / "demo")}
    assert read("demo", REMOTE) == DEMO


@pytest.mark.parametrize("text", ["dmeo", "bundled:dmeo"])
def test_a_wrong_name_says_what_there_is(text: str) -> None:
    with pytest.raises(NotFound, match=r"the catalog has no model 'dmeo'; it has: demo, demo-embedding"):
        read(text)


def test_a_missing_file_is_called_one() -> None:
    with pytest.raises(NotFound, match=r"tiny\.gguf is not there: "):
        read("tiny.gguf")


def test_paths_ask_no_catalog(folder: Path) -> None:
    (folder / "Tiny.gguf").touch()

    def asked() -> list[str]:
        raise AssertionError("nobody has to ask")

    for text in ("./Tiny.gguf", str(folder / "Tiny.gguf"), "hf:org/name"):
        read_source(text, HubOptions(), LOCAL, asked)


def test_another_machine_wants_the_whole_path() -> None:
    with pytest.raises(
        NotFound,
        match=r"the catalog has no model 'weights'; .*on the worker of http://192\.0\.2\.1 give the whole path$",
    ):
        read("weights", REMOTE)


def test_names_are_completed_after_the_word_about_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bash begins its list anew at an item about files."""
    monkeypatch.setattr(complete, "_names", lambda *_: ["demo", "demo-embedding"])
    items = complete.sources(cast("Any", None), cast("Any", None), "de")
    assert [(item.type, item.value) for item in items] == [
        ("file", "de"), ("plain", "demo"), ("plain", "demo-embedding"),
    ]  # fmt: skip
