"""What makes this machine a worker of another one, and where the token comes from."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpustack.kit.errors import SettingsError
from gpustack.settings.load import load

URL = {"server_url": "http://10.0.0.1"}


@pytest.fixture(autouse=True)
def _own_data_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GPUSTACK_DATA_DIR", str(tmp_path / "data"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("disable_worker", "true"),
        ("database_url", "postgresql://u:secret@h/d"),
        ("bootstrap_password", "long-enough"),
    ],
)
def test_a_worker_of_another_server_has_nothing_of_a_server(name: str, value: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load({**URL, name: value})
    (line,) = refused.value.message.splitlines()
    assert f"--{name.replace('_', '-')}" in line
    assert "--server-url" in line
    assert value not in line


def test_a_switch_that_is_off_contradicts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUSTACK_DISABLE_WORKER", "false")
    assert load(URL).server_url == "http://10.0.0.1"


def test_the_token_is_read_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    assert load({**URL, "token_file": str(tmp_path / "token")}).token == "secret"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read: No such file"),
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"two words\n", "more than a token"),
        ("schlüssel".encode(), "more than a token"),
        (b"\xff\xfe\x00", "no text"),
    ],
)
def test_a_token_file_that_gives_none_is_named(tmp_path: Path, content: bytes | None, words: str) -> None:
    file = tmp_path / "the-file"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SettingsError) as refused:
        load({"token_file": str(file)})
    (line,) = refused.value.message.splitlines()
    assert words in line
    assert str(file) in line
    assert "two" not in line


def test_only_one_of_token_and_its_file_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("secret")
    monkeypatch.setenv("GPUSTACK_TOKEN", "another")
    with pytest.raises(SettingsError, match="GPUSTACK_TOKEN and --token-file"):
        load({"token_file": str(tmp_path / "token")})
