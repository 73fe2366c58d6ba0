"""Text stays the text that it is: nothing takes it for a number, a date, a table or an order."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from gpustack.settings.declared import Options
from gpustack.settings.load import read

TEXTS = (
    "1e5",
    "0123",
    "1_000",
    "0x1F",
    "1:20",
    "true",
    "no",
    "null",
    "~",
    "2020-01-01",
    "{a=1}",
    '{"a": 1}',
    "[x]",
    "a,b",
    "'quoted'",
    "@format {env[HOME]}",
    "@jinja {{ env.HOME }}",
    "@int 3",
    "@none",
    "@del",
    "@empty",
    "dynaconf_merge",
    "$HOME",
    "%(HOME)s",
    "!!int 3",
    "#x",
)
#: By their types: plain, stripped, and checked by a pattern that all of them pass.
NAMES = ("huggingface_token", "worker_name", "oidc_client_id", "saml_sp_entity_id")


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_text_wherever_it_stands(
    text: str, options: Options, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def values(flags: dict[str, str]) -> set[object]:
        loaded = read(flags, options)
        assert not loaded.problems
        return {loaded.value(name) for name in NAMES}

    assert values(dict.fromkeys(NAMES, text)) == {text}
    for how in (yaml.safe_dump, _in_quotes):
        file.write_text(how(dict.fromkeys(NAMES, text)))
        assert values({"config_file": str(file)}) == {text}
    for name in NAMES:
        monkeypatch.setenv(options[name].variable, text)
    assert values({}) == {text}


def _in_quotes(values: dict[str, str]) -> str:
    return "".join(f"{name}: '{value.replace(chr(39), chr(39) * 2)}'\n" for name, value in values.items())


@pytest.mark.parametrize("text", ["0123", "1.50", "0x1F"])
def test_what_yaml_reads_as_a_number_is_no_text_and_never_another_one(
    text: str, options: Options, file: Path
) -> None:
    file.write_text("".join(f"{name}: {text}\n" for name in NAMES))
    problems = read({"config_file": str(file)}, options).problems
    assert len(problems) == len(NAMES)
    assert all(line.endswith("give text; in the file, put it in quotes") for line in problems)


def test_many_lines_are_kept(options: Options, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pem = "-----BEGIN PRIVATE KEY-----\nMII\n-----END PRIVATE KEY-----\n"
    monkeypatch.setenv("GPUSTACK_SAML_SP_PRIVATE_KEY", pem)
    file.write_text("saml_idp_x509_cert: |\n  " + pem.replace("\n", "\n  ") + "\n")
    loaded = read({"config_file": str(file), "saml_sp_x509_cert": pem}, options)
    assert not loaded.problems
    assert loaded.value("saml_sp_private_key") == pem
    assert loaded.value("saml_sp_x509_cert") == pem
    assert loaded.value("saml_idp_x509_cert").rstrip() == pem.rstrip()


def test_variables_of_dynaconf_change_nothing(
    options: Options, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other.yaml").write_text("port: 1002\nworker_name: other\n")
    file.write_text("port: 1001\nworker_name: '@int 4'\n")
    for name in ("PRELOAD", "INCLUDES", "SETTINGS_FILES", "SECRETS"):
        monkeypatch.setenv(f"{name}_FOR_DYNACONF", str(tmp_path / "other.yaml"))
    for name in ("AUTO_CAST", "ENVIRONMENTS", "MERGE_ENABLED", "LOAD_DOTENV", "DOTTED_LOOKUP"):
        monkeypatch.setenv(f"{name}_FOR_DYNACONF", "true")
    monkeypatch.setenv("DYNACONF_WORKER_NAME", "other")
    monkeypatch.setenv("GPUSTACK_WORKER_PORT", "1003")
    found = read({"config_file": str(file)}, options).checked()
    assert (found.port, found.worker_port, found.worker_name) == (1001, 1003, "@int 4")


def test_another_file_is_not_included(options: Options, file: Path, tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("worker_name: other\n")
    file.write_text(f"dynaconf_include: ['{tmp_path / 'other.yaml'}']\n")
    loaded = read({"config_file": str(file)}, options)
    (line,) = loaded.problems
    assert line.startswith("'dynaconf_include' in ")
    assert loaded.settings.worker_name == ""
