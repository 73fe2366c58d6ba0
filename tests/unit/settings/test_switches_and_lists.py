"""Switches and lists, in each of the ways in which they may be given."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from gpustack.cli import main
from gpustack.settings.click_bridge import GroupedCommand, click_options
from gpustack.settings.declared import Options
from gpustack.settings.load import Flags, read

WORDS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}  # fmt: skip
GET_PUT = ("GET", "PUT")


def typed(monkeypatch: pytest.MonkeyPatch, *words: str) -> Flags:
    """Return what ``gpustack start WORDS`` reads its settings with."""
    found: list[Flags] = []
    monkeypatch.setattr("gpustack.app.start.start", lambda flags, *_, **__: found.append(flags))
    assert main(["start", *words]) == 0
    return found[0]


# Switches -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", [case(word) for word in WORDS for case in (str.lower, str.upper, str.title)])
def test_a_switch_takes_eight_words_in_any_case(
    word: str, options: Options, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = WORDS[word.lower()]
    assert read({"debug": word}, options).checked().debug is expected
    monkeypatch.setenv("GPUSTACK_DEBUG", word)
    assert read({}, options).checked().debug is expected
    monkeypatch.delenv("GPUSTACK_DEBUG")
    for text in (f"debug: {word}\n", f"debug: '{word}'\n"):
        file.write_text(text)
        assert read({"config_file": str(file)}, options).checked().debug is expected


@pytest.mark.parametrize("word", ["", "2", "-1", "y", "t", "enabled", "tru", "yes no", "Ｔrue", "none", "01"])
def test_a_switch_takes_no_other_word(word: str, options: Options) -> None:
    assert read({"debug": word}, options).problems == (f"--debug {word!r}: give true or false",)


@pytest.mark.parametrize("value", [2, 1.0, [], [True], {}, {"true": True}])
def test_a_switch_takes_nothing_else_of_the_file(value: object, options: Options, file: Path) -> None:
    file.write_text(yaml.safe_dump({"debug": value}))
    (line,) = read({"config_file": str(file)}, options).problems
    assert line.startswith(f"debug in {file}, line 1 ")
    assert line.endswith(": give true or false")


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--debug"], "true"),
        (["-d"], "true"),
        (["--debug", "true"], "true"),
        (["--debug=off"], "off"),
        (["--debug", "--port", "1"], "true"),
        (["--no-debug"], "false"),
        (["--debug", "--no-debug"], "false"),
        (["--no-debug", "--debug"], "true"),
        (["-d", "--debug", "no"], "no"),
    ],
)
def test_a_switch_is_typed_alone_with_a_word_or_negated(
    words: list[str], value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert typed(monkeypatch, *words)["debug"] == value


def test_every_switch_can_be_negated(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    switches = [each for each in options.values() if each.switch and each.flag]
    assert len(switches) > 10
    given = typed(monkeypatch, *(f"--no-{each.flag.removeprefix('--')}" for each in switches))
    assert given == {each.name: "false" for each in switches}


def test_only_a_switch_can_be_negated(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["start", "--no-port"]) == 2
    assert "--no-port" in capsys.readouterr().err


@pytest.mark.parametrize(("platform", "offered"), [("linux", True), ("darwin", True), ("win32", False)])
def test_the_short_flag_that_powershell_keeps_is_not_offered_there(
    platform: str, offered: bool, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    flags = {name for parameter in click_options(options) for name in parameter.opts}
    monkeypatch.undo()
    assert ("-d" in flags) is offered
    assert {"--debug", "-t", "-s"} <= flags


# Lists --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["--allow-methods", "GET", "--allow-methods", "PUT"],
        ["--allow-methods", "GET,PUT"],
        ["--allow-methods", " GET , PUT ,"],
        ["--allow-methods", '["GET", "PUT"]'],
        ["--allow-methods", '["GET"]', "--allow-methods", "PUT"],
    ],
)
def test_a_list_is_typed_as_several_flags_or_as_one(
    words: list[str], options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read(typed(monkeypatch, *words), options).checked().allow_methods == GET_PUT


@pytest.mark.parametrize("text", ["GET,PUT", "GET, PUT", '["GET", "PUT"]', ' ["GET","PUT"] '])
def test_a_list_in_a_variable(text: str, options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUSTACK_ALLOW_METHODS", text)
    assert read({}, options).checked().allow_methods == GET_PUT


@pytest.mark.parametrize("text", ["[GET, PUT]", "\n- GET\n- PUT", "GET,PUT", '\'["GET", "PUT"]\''])
def test_a_list_in_the_file(text: str, options: Options, file: Path) -> None:
    file.write_text(f"allow_methods: {text}\n")
    assert read({"config_file": str(file)}, options).checked().allow_methods == GET_PUT


def test_a_list_is_replaced_and_not_joined(
    options: Options, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text("allow_methods: [GET, PUT]\nallow_headers: [X-One]\n")
    monkeypatch.setenv("GPUSTACK_ALLOW_METHODS", "PATCH")
    flags = {"config_file": str(file)}
    found = read(flags, options).checked()
    assert (found.allow_methods, found.allow_headers) == (("PATCH",), ("X-One",))
    assert read({**flags, "allow_methods": ["DELETE"]}, options).checked().allow_methods == ("DELETE",)


@pytest.mark.parametrize("text", ["[GET", "['GET']", "[1e", "G E T", ",", "[]", '[["GET"]]', "GET,\x1b"])
def test_a_list_that_is_none_is_one_line(text: str, options: Options) -> None:
    (line,) = read({"allow_methods": [text]}, options).problems
    assert line.startswith("--allow-methods ")


def test_one_value_is_not_a_list(options: Options, file: Path) -> None:
    file.write_text("worker_name: [one, two]\nport: {first: 1}\nallow_methods: {GET: 1}\n")
    problems = read({"config_file": str(file)}, options).problems
    assert [line.partition(" in ")[0] for line in problems] == ["worker_name", "port", "allow_methods"]
    assert [line.rpartition(": ")[2] for line in problems] == [
        "give one value, not several",
        "give one value, not several",
        "give a list",
    ]


def test_a_plain_command_has_no_options_without_flags(options: Options) -> None:
    command = GroupedCommand("start", params=click_options(options))
    assert {parameter.name for parameter in command.params} == {
        name for name, option in options.items() if option.flag
    }
