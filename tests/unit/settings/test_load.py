"""Where settings come from, which source wins, and how wrong ones are named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpustack.kit.errors import SettingsError
from gpustack.settings.declared import CORE
from gpustack.settings.load import load


def test_a_flag_wins_over_a_variable_and_that_over_the_file(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text("port: 1001\nworker_port: 1002\nworker_name: from-file\n")
    monkeypatch.setenv("GPUSTACK_PORT", "2001")
    monkeypatch.setenv("GPUSTACK_WORKER_PORT", "2002")
    found = load({"config_file": str(file), "port": "3001"})
    assert (found.port, found.worker_port, found.worker_name) == (3001, 2002, "from-file")


def test_the_file_can_be_named_by_a_variable(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("disable_worker: true\nsystem_reserved:\n  ram: 4\n")
    monkeypatch.setenv("GPUSTACK_CONFIG_FILE", str(file))
    found = load({})
    assert found.disable_worker
    assert (found.system_reserved.ram, found.system_reserved.vram) == (4, 1)


def test_places_lie_below_the_data_directory_unless_named(tmp_path: Path) -> None:
    found = load({"data_dir": str(tmp_path), "log_dir": "/elsewhere"})
    assert (found.bin_dir, found.log_dir) == (tmp_path / "bin", Path("/elsewhere"))


def test_a_relative_path_needs_a_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert load({"data_dir": "data"}).data_dir == tmp_path / "here" / "data"
    (tmp_path / "here").rmdir()
    with pytest.raises(
        SettingsError, match=r"^--data-dir 'data': give a path that begins with /: the working"
    ):
        load({"data_dir": "data"})
    assert load({"data_dir": "/srv/data"}).log_dir == Path("/srv/data/log")


def test_a_user_whom_nobody_knows_has_a_data_directory_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", unknown)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    assert load({}).data_dir == Path("/.local/share/gpustack")


@pytest.mark.parametrize("wrong", ["-1", "86401", "nan", "soon", ""])
def test_seconds_are_a_number_within_a_day(wrong: str) -> None:
    assert load({}).replace_after == 60
    assert load({"replace_after": "2.5"}).replace_after == 2.5
    with pytest.raises(SettingsError, match=r"--replace-after .*give seconds from 0 to 86400"):
        load({"replace_after": wrong})


def test_every_declared_default_is_the_settings_own() -> None:
    typed = {o.name: o.default_shown for o in CORE.values() if o.default_shown and not o.option.default_text}
    assert load(typed) == load({})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "http"),
        ("port", "70000"),
        ("debug", "maybe"),
        ("service_port_range", "40000"),
        ("service_port_range", "9-1"),
        ("service_port_range", "0-70000"),
        ("system_reserved", "[1]"),
        ("system_reserved", '{"disk": 1}'),
        ("database_url", "https://x"),
        ("data_dir", " "),
        ("advertise_address", "not an ip"),
        ("advertise_address", "http://10.0.0.1"),
        ("advertise_address", "10.0.0.1:80"),
        ("advertise_address", "10.0.0.999"),
        ("advertise_address", "0.0.0.0"),
        ("advertise_address", "::"),
        ("token", ""),
        ("token", "schlüssel"),
        ("worker_name", "one\ntwo"),
        ("data_dir", "one\ntwo"),
        ("data_dir", "~nobody-of-that-name/x"),
        ("pipx_path", "/" + "x" * 5000),
        ("system_reserved", '{"ram": 1e308}'),
        ("system_reserved", '{"ram": true}'),
        ("service_port_range", "9" * 5000 + "-1"),
        ("allow_origins", "https://a.example,\ud800"),
    ],
)
def test_a_wrong_value_is_named_with_its_flag(name: str, value: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load({name: value})
    (line,) = caught.value.message.splitlines()
    assert line.startswith("--" + name.replace("_", "-"))


def test_all_that_is_wrong_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUSTACK_PORT", "x")
    with pytest.raises(SettingsError) as caught:
        load({"debug": "x"})
    assert {line.split()[0] for line in caught.value.message.splitlines()} == {"GPUSTACK_PORT", "--debug"}


def test_an_unknown_key_gets_a_suggestion(file: Path) -> None:
    file.write_text("debug: true\nprot: 80\n")
    with pytest.raises(
        SettingsError, match=rf"^'prot' in {file}, line 2 is not an option; did you mean 'port'\?$"
    ):
        load({"config_file": str(file)})


@pytest.mark.parametrize(("key", "meant"), [("worker-name", "worker_name"), ("PORT", "port")])
def test_a_key_written_like_a_flag_or_a_variable_gets_one_too(file: Path, key: str, meant: str) -> None:
    file.write_text(f"{key}: 80\n")
    with pytest.raises(SettingsError, match=rf"^'{key}' in .* did you mean '{meant}'\?$"):
        load({"config_file": str(file)})


@pytest.mark.parametrize(
    "content",
    [
        "port: [",
        "- 1\n- 2",
        "\x00",
        "port: 80\n\tdebug: true",
        "[" * 3000,
        "a: " + "{a: " * 3000,
        "port: 2020-13-45",
        "port: !!timestamp soon",
        "port: !!bool perhaps",
        "port: !!int five",
        "port: 0x" + "f" * 5000,
        "? 0x" + "f" * 5000 + "\n: 1",
        "allow_origins: &a [*a]",
        "port: 1\n---\nport: 2",
        "\ufffe",
    ],
)
def test_a_file_that_is_no_yaml_mapping_is_one_line(file: Path, content: str) -> None:
    file.write_text(content)
    with pytest.raises(SettingsError, match="--config-file") as caught:
        load({"config_file": str(file)})
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        ("port: 1\nport: 1\n", "1 and 2"),
        ("{port: 1, port: 1}", "1 and 1"),
        ("system_reserved:\n  ram: 1\n  vram: 1\n  ram: 2\n", "2 and 4"),
    ],
)
def test_a_key_that_is_there_twice_is_named_with_its_lines(file: Path, content: str, lines: str) -> None:
    file.write_text(content)
    with pytest.raises(SettingsError, match=f"{file} has (port|ram) twice, at lines {lines}") as caught:
        load({"config_file": str(file)})
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "address", ["", "10.0.0.1", "fd00::1", "gpu-box", "gpustack.example.com", "my_service"]
)
def test_an_address_is_an_ip_address_or_a_host_name(address: str) -> None:
    assert load({"advertise_address": address}).advertise_address == address


def test_a_wrong_item_of_a_list_is_shown_by_itself() -> None:
    with pytest.raises(SettingsError, match=r"^--allow-origins 'b.example': give origins"):
        load({"allow_origins": "https://a.example,b.example"})


def test_secrets_stay_out_of_messages() -> None:
    with pytest.raises(SettingsError) as caught:
        load({"database_url": "postgres-typo://user:very-secret@host/db", "bootstrap_password": "short"})
    assert "very-secret" not in caught.value.message
    assert "short" not in caught.value.message.replace("at least", "")


@pytest.mark.parametrize(
    "url", ["http://user:very-secret@ho st", "http://user:very-secret/x@host", "http://user:very-secret@[::"]
)
@pytest.mark.parametrize("name", ["server_url", "allow_origins", "advertise_address"])
def test_passwords_in_urls_stay_out_of_messages(url: str, name: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load({name: url})
    assert "very-secret" not in caught.value.message
    assert "secret" not in caught.value.message


@pytest.mark.parametrize("text", ["*very-secret", "!very-secret", "!very-secret x", "!!int very-secret"])
def test_a_password_that_yaml_takes_for_something_stays_out_of_messages(file: Path, text: str) -> None:
    file.write_text(f"bootstrap_password: {text}\n")
    with pytest.raises(SettingsError, match=r"line 1|is not YAML") as caught:
        load({"config_file": str(file)})
    assert "very-secret" not in caught.value.message
