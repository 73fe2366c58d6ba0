"""Certificates and secrets in files."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gpustack.app.checks import Examined
from support.certificates import a_pair

Look = Callable[..., Examined]


@pytest.fixture
def pair(tmp_path: Path) -> dict[str, str]:
    certfile, keyfile = a_pair().write(tmp_path)
    return {"ssl_certfile": str(certfile), "ssl_keyfile": str(keyfile)}


# Certificates -------------------------------------------------------------------------------------------


def test_a_pair_is_right(look: Look, pair: dict[str, str]) -> None:
    found = look(**pair)
    assert (found.problems, found.warnings) == ((), ())


def test_a_key_of_another_certificate_names_both_as_they_were_given(
    look: Look, pair: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keyfile, config = Path(pair["ssl_keyfile"]), tmp_path / "config.yaml"
    keyfile.write_bytes(a_pair().key_pem())
    monkeypatch.setenv("GPUSTACK_SSL_KEYFILE", str(keyfile))
    config.write_text(f"ssl_certfile: {pair['ssl_certfile']}\n")
    (line,) = look(config_file=str(config)).problems
    assert line.startswith(f"GPUSTACK_SSL_KEYFILE {keyfile} does not belong to the first certificate in ")
    assert f"ssl_certfile in {config}, line 1 {pair['ssl_certfile']}; " in line


@pytest.mark.parametrize("name", ["ssl_certfile", "ssl_keyfile"])
def test_a_file_that_is_not_there_is_named(name: str, look: Look, pair: dict[str, str]) -> None:
    Path(pair[name]).unlink()
    (line,) = look(**pair).problems
    flag = "--" + name.replace("_", "-")
    assert line.startswith(f"{flag} {pair[name]} cannot be read: No such file or directory")


def test_swapped_files_are_said_to_be(look: Look, pair: dict[str, str]) -> None:
    (line,) = look(ssl_certfile=pair["ssl_keyfile"], ssl_keyfile=pair["ssl_certfile"]).problems
    assert line.startswith(f"--ssl-certfile {pair['ssl_keyfile']} holds the private key, and --ssl-keyfile ")


def test_a_worker_of_another_server_has_no_use_for_one(look: Look, pair: dict[str, str]) -> None:
    Path(pair["ssl_keyfile"]).unlink()
    assert not look(server_url="http://10.0.0.1", **pair).problems


def test_half_a_pair_is_said_once(look: Look) -> None:
    assert look(ssl_keyfile="/nowhere/key").problems == (
        "--ssl-keyfile is given without --ssl-certfile; give both",
    )


# Secrets ------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="has other rights")
@pytest.mark.parametrize(("mode", "warned"), [(0o644, True), (0o640, True), (0o604, True), (0o600, False)])
def test_a_file_with_secrets_is_for_its_owner_alone(
    mode: int, warned: bool, look: Look, tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "bootstrap_password: very-secret\ndatabase_url: postgresql://u:very-secret@h/d\ndebug: true\n"
    )
    config.chmod(mode)
    found = look(config_file=str(config))
    assert not found.problems
    words = f"{config} holds bootstrap_password, database_url and other users can read it (mode 0{mode:o}); chmod 600 {config}"
    assert found.warnings == ((words,) if warned else ())


@pytest.mark.parametrize(
    "content", ["debug: true\n", "token: ''\n", "database_url: postgresql://u@h/d\n", "{}"]
)
def test_a_file_without_secrets_may_be_read_by_all(content: str, look: Look, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(content)
    config.chmod(0o644)
    assert not look(config_file=str(config)).warnings


def test_a_secret_that_stands_elsewhere_is_not_the_files(
    look: Look, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("debug: true\n")
    config.chmod(0o644)
    monkeypatch.setenv("GPUSTACK_BOOTSTRAP_PASSWORD", "very-secret")
    assert not look(config_file=str(config)).warnings
