"""What a user writes for a repository, and a path that was meant as one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import click
import pytest

from gpustack.cli.sources import HubOptions, read_repository, read_source
from gpustack.kit.errors import InvalidInput, NotFound

LOCAL = cast("Any", SimpleNamespace(local=True, url="http://127.0.0.1"))
REMOTE = cast("Any", SimpleNamespace(local=False, url="http://192.0.2.1"))


def nothing() -> list[str]:
    """A catalog that is empty."""
    return []


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("hf:org/name", ("org/name", "", "")),
        ("hf://org/name", ("org/name", "", "")),
        ("hf.co/org/name", ("org/name", "", "")),
        ("https://huggingface.co/org/name", ("org/name", "", "")),
        ("hf:gpt2", ("gpt2", "", "")),
        ("hf:org/name:Q4_K_M", ("org/name", "Q4_K_M", "")),
        ("hf:org/name@v1", ("org/name", "", "v1")),
        ("hf:org/name:*Q8_0*.gguf@refs/pr/1", ("org/name", "*Q8_0*.gguf", "refs/pr/1")),
        ("hf:org/name@v1:Q8_0", ("org/name", "Q8_0", "v1")),
    ],
)
def test_a_repository_is_named_in_one_word(text: str, parts: tuple[str, str, str]) -> None:
    assert read_repository(text) == parts


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("hf:", "names no repository"),
        ("hf:org/name/file.gguf", "did you mean hf:org/name:file.gguf"),
    ],
)
def test_another_form_is_told(text: str, line: str) -> None:
    with pytest.raises(InvalidInput, match=line):
        read_repository(text)


def test_options_say_the_same() -> None:
    options = HubOptions(repo="org/name", filename="*Q8*", revision="v1")
    expected = {
        "source": "huggingface",
        "huggingface_repo_id": "org/name",
        "huggingface_filename": "*Q8*",
        "huggingface_revision": "v1",
    }
    assert read_source(None, options, REMOTE, nothing) == (expected, "org/name")
    assert read_source("hf:org/name", HubOptions(filename="*Q8*", revision="v1"), REMOTE, nothing) == (
        expected,
        "org/name",
    )


def test_a_path_that_looks_like_a_repository_leads_to_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        NotFound, match=r"is not there: .*; for the repository on the Hugging Face Hub write hf:org/name$"
    ):
        read_source("org/name", HubOptions(), LOCAL, nothing)
    with pytest.raises(InvalidInput, match=r"write hf:org/name:Q4_K_M$"):
        read_source("org/name:Q4_K_M", HubOptions(), REMOTE, nothing)
    with pytest.raises(NotFound, match=r"is not there: [^;]*$"):
        read_source("./org/name", HubOptions(), LOCAL, nothing)


@pytest.mark.parametrize(
    ("text", "options"),
    [
        (None, HubOptions()),
        (None, HubOptions(filename="x")),
        ("hf:org/name", HubOptions(repo="org/name")),
        ("/m.gguf", HubOptions(revision="v1")),
    ],
)
def test_what_contradicts_itself_is_a_usage_error(text: str | None, options: HubOptions) -> None:
    with pytest.raises(click.UsageError):
        read_source(text, options, REMOTE, nothing)
