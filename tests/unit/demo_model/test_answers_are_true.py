"""What the answers name exists: commands, their options, options of `gpustack start`, paths of the API, documents."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import corpus
import pytest

from gpustack.cli.commands import group

ROOT = Path(__file__).parents[3]
ANSWERS = {topic.name: topic.answer for topic in corpus.topics()} | {
    corpus.OFF_TOPIC: corpus.OFF_TOPIC_ANSWER
}
QUOTED = sorted({text for answer in ANSWERS.values() for text in re.findall(r"`([^`]+)`", answer)})
COMMANDS = [text for text in QUOTED if text.startswith("gpustack ")]
OPTIONS = [text for text in QUOTED if re.fullmatch(r"--[a-z-]+( .*)?", text)]


def options_of(command: click.Command, above: click.Context | None = None) -> set[str]:
    context = click.Context(command, parent=above)
    return {option for each in command.get_params(context) for option in getattr(each, "opts", ())}


@pytest.mark.parametrize("text", COMMANDS)
def test_a_command_exists_with_its_options(text: str) -> None:
    command: click.Command = group
    options, words = options_of(group), shlex.split(text)[1:]
    while words and isinstance(command, click.Group) and not words[0].startswith("-"):
        if words[0].isupper():
            return  # `gpustack COMMAND --help` stands for all
        found = command.get_command(click.Context(command), words.pop(0))
        assert found is not None, text
        command = found
        options = options_of(command) | {"--help"}
    assert command is not group or text == "gpustack --help", text
    named = [word.partition("=")[0] for word in words if word.startswith("-")]
    if "--backend-parameter" in named:
        named = named[: named.index("--backend-parameter") + 1]  # what follows is the engine's
    assert set(named) <= options | {"--help"}, text


@pytest.mark.parametrize("text", OPTIONS)
def test_an_option_alone_belongs_to_some_command(text: str) -> None:
    option = text.split(maxsplit=1)[0]
    known: set[str] = set()
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        assert command is not None
        known |= options_of(command)
        for inner in getattr(command, "commands", {}).values():
            known |= options_of(inner)
    assert option in known


def test_documents_exist() -> None:
    named = {
        path
        for answer in ANSWERS.values()
        for path in re.findall(r"\b(?:docs|examples|plugins)/[\w./-]*\w", answer)
    }
    assert named
    assert not [path for path in named if not (ROOT / path).exists()]
