"""Where settings come from, which source wins, and how wrong ones are named."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpustack.kit.errors import SettingsError
from gpustack.settings.load import load
from gpustack.settings.model import Settings
from gpustack.settings.options import OPTIONS


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for option in OPTIONS:
        monkeypatch.delenv(option.variable, raising=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.yaml"


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


def test_every_declared_default_is_the_settings_own() -> None:
    declared = {o.name: o.default for o in OPTIONS if o.default is not None and o.name != "config_file"}
    assert load({name: str(value) for name, value in declared.items()}) == load({})


def test_every_setting_is_declared() -> None:
    assert set(Settings.model_fields) == {option.name for option in OPTIONS} - {"config_file"}


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("1", True), ("ON", True), ("no", False), ("0", False)]
)
def test_switches_are_read_as_people_write_them(text: str, value: bool) -> None:
    assert load({"debug": text}).debug is value


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
        ("database_url", "mysql://x"),
        ("data_dir", " "),
        ("advertise_address", "not an ip"),
        ("advertise_address", "http://10.0.0.1"),
        ("advertise_address", "10.0.0.1:80"),
        ("advertise_address", "10.0.0.999"),
        ("token", ""),
    ],
)
def test_a_wrong_value_is_named_with_its_flag(name: str, value: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load({name: value})
    assert caught.value.message.startswith("--" + name.replace("_", "-"))


def test_all_that_is_wrong_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUSTACK_PORT", "x")
    with pytest.raises(SettingsError) as caught:
        load({"debug": "x"})
    assert [line.split()[0] for line in caught.value.message.splitlines()] == ["GPUSTACK_PORT", "--debug"]


def test_an_unknown_key_gets_a_suggestion(file: Path) -> None:
    file.write_text("prot: 80\n")
    with pytest.raises(SettingsError, match=r"'prot' is not an option; did you mean 'port'\?"):
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
    ],
)
def test_a_file_that_is_no_yaml_mapping_is_one_line(file: Path, content: str) -> None:
    file.write_text(content)
    with pytest.raises(SettingsError, match="--config-file") as caught:
        load({"config_file": str(file)})
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("content", "lines"),
    [("port: 1\nport: 1\n", "1 and 2"), ("system_reserved:\n  ram: 1\n  vram: 1\n  ram: 2\n", "2 and 4")],
)
def test_a_key_that_is_there_twice_is_named_with_its_lines(file: Path, content: str, lines: str) -> None:
    file.write_text(content)
    with pytest.raises(SettingsError, match=f"{file} has '(port|ram)' twice, at lines {lines}") as caught:
        load({"config_file": str(file)})
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "address", ["", "10.0.0.1", "fd00::1", "gpu-box", "gpustack.example.com", "my_service"]
)
def test_an_address_is_an_ip_address_or_a_host_name(address: str) -> None:
    assert load({"advertise_address": address}).advertise_address == address


def test_one_port_is_not_for_two(file: Path) -> None:
    file.write_text("worker_port: 9080\n")
    with pytest.raises(SettingsError, match=r"--port and worker_port in .* are both 9080"):
        load({"port": "9080", "config_file": str(file)})
    assert load({"port": "9080", "worker_port": "9080", "disable_worker": "true"}).port == 9080
    assert load({"port": "0", "worker_port": "0"}).port == 0


def test_values_are_text_and_never_run(file: Path) -> None:
    file.write_text("worker_name: '@format {env[HOME]}'\n")
    assert load({"config_file": str(file)}).worker_name == "@format {env[HOME]}"


def test_secrets_stay_out_of_messages() -> None:
    with pytest.raises(SettingsError) as caught:
        load({"database_url": "postgres-typo://user:very-secret@host/db", "bootstrap_password": "short"})
    assert "very-secret" not in caught.value.message
    assert "short" not in caught.value.message.replace("at least", "")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([o.name for o in OPTIONS if o.name != "config_file"]), st.text(max_size=20)
    )
)
def test_no_text_makes_anything_but_settings_or_their_error(flags: dict[str, str]) -> None:
    try:
        found = load(flags)
    except SettingsError:
        return
    assert isinstance(found, Settings)
