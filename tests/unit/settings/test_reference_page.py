"""Each row of the reference page holds: its flag, group, default, variable and key, which source wins, what is refused."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from gpustack.settings.declared import Options
from gpustack.settings.load import read
from gpustack.settings.shown import HIDDEN, shown

HERE = Path(__file__).parent
_ROW = re.compile(
    r"^\| (?:`(?P<short>-\w)` value, )?`(?P<flag>--[a-z0-9-]+)`(?P<value> value)? \| (?P<default>.*) \|$"
)


@dataclass(frozen=True)
class Row:
    group: str
    flag: str
    short: str
    takes_value: bool
    default: str

    @property
    def name(self) -> str:
        return self.flag.removeprefix("--").replace("-", "_")

    @property
    def variable(self) -> str:
        return "GPUSTACK_" + self.name.upper()


def _rows() -> list[Row]:
    found, group = [], ""
    for line in (HERE / "reference_page.md").read_text().splitlines():
        if line.startswith("## "):
            group = line.removeprefix("## ")
        elif match := _ROW.match(line):
            default = match["default"].strip("`").replace('\\"', '"').strip('"')
            found.append(Row(group, match["flag"], match["short"] or "", bool(match["value"]), default))
    return found


ROWS = _rows()
BY_NAME = {row.name: row for row in ROWS}

PORTS = ("1001", "1002", "1003", "http")
SWITCH = ("true", "false", "true", "maybe")
TEXT = ("one", "two", "three", "four\x1b[31m")
URL = ("http://one.example", "https://two.example", "http://three.example:8080", "one.example")
FOLDER = ("/srv/one", "/srv/two", "/srv/three", " ")
#: Three right values and a wrong one, where the option's kind does not say them.
SAMPLES: dict[str, tuple[str, str, str, str]] = {
    "advertise_address": ("10.0.0.1", "10.0.0.2", "box", "10.0.0.300"),
    "worker_ip": ("10.0.0.1", "10.0.0.2", "box", "10.0.0.300"),
    "pipx_path": ("/bin/sh", "/bin/ls", "/bin/cat", "/nowhere/pipx"),
    "system_default_container_registry": ("one.example", "two.example:5000", "three", "http://one.example"),
    "image_name_override": ("one:1", "two.example/a:2", "three", "one:"),
    "image_repo": ("one/a", "two.example:5000/b", "three", "One/A"),
    "gateway_mode": ("embedded", "disabled", "auto", "Side Ways"),
    "gateway_concurrency": ("1", "2", "3", "none"),
    "database_url": (*(f"postgresql://u:p@h{number}/d" for number in "123"), "https://h/d"),
    "bootstrap_password": ("long enough 1", "long enough 2", "long enough 3", "short"),
    "model_catalog_file": ("/srv/one.yaml", "https://two.example/c.yaml", "/srv/three.yaml", "http://:x"),
    "allow_origins": ("https://one.example", "https://two.example", "*", "one.example"),
    "allow_methods": ("GET", "PUT", "*", "G E T"),
    "allow_headers": ("X-One", "X-Two", "*", "X:One"),
    "oidc_redirect_uri": (*(f"https://{n}.example/auth/oidc/callback" for n in ("one", "two", "three")), "https://x"),
    "saml_sp_acs_url": (*(f"https://{n}.example/auth/saml/callback" for n in ("one", "two", "three")), "https://x"),
    "saml_security": ('{"wantNameId": true}', '{"wantNameId": false}', "{}", '{"wantNameID": true}'),
    "external_auth_name": ("email", "sub", "name", "first name"),
    "external_auth_full_name": ("first+last", "name", "full", "first + last"),
    "external_auth_avatar_url": ("picture", "photo", "avatar", "a+b"),
    "service_port_range": ("1-2", "3-4", "5-6", "6-5"),
    "distributed_worker_port_range": ("1-2", "3-4", "5-6", "x"),
    "system_reserved": ('{"ram": 3, "vram": 1}', '{"ram": 4, "vram": 1}', '{"ram": 5, "vram": 1}', '{"disk": 1}'),
    "token_file": FOLDER,
    "ssl_keyfile": FOLDER,
    "ssl_certfile": FOLDER,
}  # fmt: skip
#: Their parts are not built yet; a right value is refused with a line that says so.
REFUSED = {"namespace": "gpustack", "service_discovery_name": "gpustack", "gateway_kubeconfig": ""}


def samples(row: Row, options: Options) -> tuple[str, str, str, str]:
    if row.name in SAMPLES:
        return SAMPLES[row.name]
    option = options[row.name]
    if option.switch:
        return SWITCH
    if option.metavar == "PORT":
        return PORTS
    if option.metavar == "URL":
        return URL
    return FOLDER if option.metavar == "PATH" else TEXT


def value_of(loaded: Any, name: str) -> str:
    """Return the effective value as the samples are written."""
    name = "advertise_address" if name == "worker_ip" else name
    value = loaded.value(name)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return ",".join(value)
    return json.dumps(value) if isinstance(value, dict) else str(value)


def test_the_page_is_read() -> None:
    assert len(ROWS) == 77
    assert {row.group for row in ROWS} == {"Common", "Server", "Worker"}


@pytest.fixture(scope="module")
def help_by_group() -> dict[str, str]:
    from gpustack.cli.start import command

    text = CliRunner().invoke(command, ["--help"], terminal_width=10_000).output
    blocks = re.split(r"^(\w+) Options:\n", text, flags=re.MULTILINE)[1:]
    return dict(zip(blocks[::2], blocks[1::2], strict=True))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.flag)
def test_the_help_has_the_flag_in_its_group_with_its_default(row: Row, help_by_group: dict[str, str]) -> None:
    head = f"{row.short}, {row.flag}" if row.short else row.flag
    entries = re.split(r"^  (?=-)", help_by_group[row.group], flags=re.MULTILINE)
    (line,) = (" ".join(entry.split()) for entry in entries if re.match(rf"{re.escape(head)}( |$)", entry))
    default = re.search(r"\[default: (.*)\]$", line)
    places = {"cache_dir": "<data-dir>/cache", "bin_dir": "<data-dir>/bin", "log_dir": "<data-dir>/log"}
    expected = "" if row.default == "(empty)" else row.default
    assert (default[1] if default else "") == places.get(row.name, expected)


@pytest.mark.parametrize(
    "row",
    [row for row in ROWS if row.name not in REFUSED and row.name != "config_file"],
    ids=lambda row: row.flag,
)
def test_flag_variable_and_key_set_it_and_the_first_of_them_wins(
    row: Row, options: Options, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_flag, by_variable, by_key, _ = samples(row, options)
    content = {row.name: [by_key] if options[row.name].repeatable else yaml.safe_load(by_key)}
    file.write_text(yaml.safe_dump(content))
    flags = {"config_file": str(file)}
    if row.name in ("ssl_keyfile", "ssl_certfile"):
        flags["ssl_certfile" if row.name == "ssl_keyfile" else "ssl_keyfile"] = "/srv/other"

    def effective(**more: str) -> str:
        loaded = read({**flags, **more}, options)
        problems = [line for line in loaded.problems if row.name != "token_file" or "read" not in line]
        assert not problems
        return value_of(loaded, row.name)

    assert effective() == by_key
    monkeypatch.setenv(row.variable, by_variable)
    assert effective() == by_variable
    assert effective(**{row.name: by_flag}) == by_flag
    file.write_text("{}")
    assert effective() == by_variable


def test_the_file_of_the_flag_comes_before_that_of_the_variable(
    options: Options, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text("port: 1001\n")
    (tmp_path / "other.yaml").write_text("port: 1002\n")
    monkeypatch.setenv("GPUSTACK_CONFIG_FILE", str(tmp_path / "other.yaml"))
    assert read({}, options).checked().port == 1002
    assert read({"config_file": str(file)}, options).checked().port == 1001


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.flag)
def test_a_wrong_value_is_refused_and_named(
    row: Row, options: Options, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = {**dict.fromkeys(REFUSED, "Not A Name"), "config_file": "/nowhere/at/all"}.get(
        row.name
    ) or samples(row, options)[3]
    other = {"ssl_keyfile": "ssl_certfile", "ssl_certfile": "ssl_keyfile"}.get(row.name)
    rest = {other: "/srv/other"} if other else {}
    (line,) = read({**rest, row.name: wrong}, options).problems
    assert line.startswith(row.flag)
    monkeypatch.setenv(row.variable, wrong)
    (line,) = read(rest, options).problems
    assert line.startswith(row.variable)
    monkeypatch.delenv(row.variable)
    if row.name != "config_file":
        file.write_text(yaml.safe_dump({row.name: wrong}))
        (line,) = read({**rest, "config_file": str(file)}, options).problems
        assert line.startswith(f"{row.name} in {file}, line 1")


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_for_a_later_version_is_refused_with_a_line_that_says_so(
    name: str, options: Options, tmp_path: Path
) -> None:
    value = REFUSED[name]
    if not value:
        path = tmp_path / "kubeconfig"
        path.write_text("clusters: []\ncontexts: []\nusers: []\n")
        value = str(path)
    (line,) = read({name: value}, options).problems
    assert line.startswith(BY_NAME[name].flag)
    assert "not part of this version yet" in line


@pytest.mark.parametrize("mode", ["in-cluster", "external"])
def test_gateways_of_kubernetes_are_for_a_later_version(mode: str, options: Options) -> None:
    (line,) = read({"gateway_mode": mode}, options).problems
    assert "not part of this version yet" in line


def test_the_namespace_of_a_pod_is_nobodys_wish(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POD_NAMESPACE", "models")
    loaded = read({}, options)
    assert (loaded.problems, loaded.settings.namespace) == ((), "models")


def test_the_variables_of_the_hub(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_1")
    monkeypatch.setenv("HF_ENDPOINT", "https://hf-mirror.com/")
    found = read({}, options).checked()
    assert (found.huggingface_token, found.hf_endpoint) == ("hf_1", "https://hf-mirror.com")
    monkeypatch.setenv("GPUSTACK_HUGGINGFACE_TOKEN", "hf_2")
    assert read({}, options).checked().huggingface_token == "hf_2"


def test_the_variable_of_llama_box(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUSTACK_DISABLE_DYNAMIC_LINK_LLAMA_BOX", "true")
    assert read({}, options).value("disable_dynamic_link_llama_box") is True
    assert not options["disable_dynamic_link_llama_box"].flag


def test_the_whole_file_of_the_page_loads(options: Options) -> None:
    loaded = read({"config_file": str(HERE / "reference_page.yaml")}, options)
    assert not loaded.problems
    keys = yaml.safe_load((HERE / "reference_page.yaml").read_text())
    rows = {row["name"]: row for row in shown(loaded)}
    assert len(keys) > 60
    for name, value in keys.items():
        if name in ("worker_ip", "database_url", "bootstrap_password", "saml_security", "system_reserved"):
            continue
        assert rows[name]["value"] in (value, HIDDEN), name
    # It makes this machine a worker, to which what is for a server means nothing.
    assert not loaded.settings.database_url
    assert [line.split(" in ")[0] for line in loaded.warnings if "is for a server" in line] == [
        "database_url",
        "bootstrap_password",
    ]
