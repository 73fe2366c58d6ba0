"""From the path that a user gave to one model, or one clear line."""

import asyncio
import os
import time
from pathlib import Path

import pytest

from gpustack.kit.errors import InvalidInput, Unavailable
from gpustack.worker.facts import read_facts, read_facts_within
from support.gguf_bytes import a_gguf


def refusal(path: Path | str) -> str:
    with pytest.raises(InvalidInput) as caught:
        read_facts(path)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_a_path_that_is_missing(tmp_path: Path) -> None:
    assert refusal(tmp_path / "no.gguf").startswith(f"{tmp_path}/no.gguf does not exist on this worker")


def test_a_path_below_a_file(tmp_path: Path) -> None:
    path = a_gguf(tmp_path / "m.gguf")

    assert "cannot be read" in refusal(path / "inner.gguf")


def test_a_path_that_cannot_be(tmp_path: Path) -> None:
    assert "is not a path" in refusal("/a\0b")
    assert "cannot be read" in refusal("/" + "x" * 5000)


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.gguf")

    assert "neither a file nor a directory" in refusal(tmp_path / "m.gguf")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_the_right_to_read(tmp_path: Path) -> None:
    path = a_gguf(tmp_path / "m.gguf")
    path.chmod(0)

    assert "may not be read" in refusal(path)


def test_a_directory_with_one_model_means_that_model(tmp_path: Path) -> None:
    path = a_gguf(tmp_path / "m.gguf")
    a_gguf(tmp_path / "mmproj-m.gguf", {"general.architecture": "clip"})

    assert read_facts(tmp_path).path == str(path)


def test_a_directory_with_several_models_asks_which(tmp_path: Path) -> None:
    a_gguf(tmp_path / "a-Q4.gguf")
    a_gguf(tmp_path / "a-Q8.gguf")

    assert "holds 2 GGUF models; name one of them: a-Q4.gguf, a-Q8.gguf" in refusal(tmp_path)


def test_a_link_is_followed(tmp_path: Path) -> None:
    target = a_gguf(tmp_path / "m.gguf")
    (tmp_path / "link.gguf").symlink_to(target)

    assert read_facts(tmp_path / "link.gguf").parameters == 128


async def test_reading_happens_beside_the_event_loop(tmp_path: Path) -> None:
    assert (await read_facts_within(a_gguf(tmp_path / "m.gguf"))).architecture == "llama"
    with pytest.raises(InvalidInput):
        await read_facts_within(tmp_path / "no.gguf")


async def test_a_stalled_file_system_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpustack.worker.facts.resolve._read", lambda *_: time.sleep(0.6))

    with pytest.raises(Unavailable, match="network file system that has stalled"):
        await read_facts_within(tmp_path, seconds=0.05)
    await asyncio.sleep(0.7)
