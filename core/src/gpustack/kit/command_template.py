"""Command lines with placeholders, such as ``serve --port {{port}} {{model_path}}``.

They are split as a shell would do it, but no shell runs them, and what a placeholder stands for is never split: a path
with spaces stays one word.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping

#: What may stand in double braces, and what it becomes.
PLACEHOLDERS: Mapping[str, str] = {
    "model_path": "path of the model's file or directory",
    "model_name": "name under which requests ask for the model",
    "port": "port to listen on",
    "host": "address to listen on",
    "worker_ip": "the same as host: engines listen on their own machine only",
    "gpu_count": "number of GPUs that the engine gets",
    "gpu_ids": "their numbers as the engine counts them, as in 0,1",
    "version": "version of the engine",
    "instance_name": "name of the model's instance",
    "command": "path of the installed engine, of a backend that installs one",
}
_ANY = re.compile(r"\{\{\s*([^{}]*?)\s*\}\}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
#: Words that mean something to a shell alone.
_SHELL = frozenset({"|", "||", "&", "&&", ";", ">", ">>", "<", "2>", "2>&1", "&>"})


def words_of(template: str) -> list[str]:
    """Return the words of a command line, placeholders unfilled.

    Raises ValueError with one line for what cannot be split, for an unknown placeholder, and for what needs a shell.
    """
    # Spaces inside the braces would split the placeholder, and a shell removes an escaped end of line.
    text = _ANY.sub(lambda found: "{{" + found[1] + "}}", template).replace("\\\n", " ")
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"it cannot be split into words: {str(error).lower()}") from None
    if not words:
        raise ValueError("it is empty")
    for word in words:
        if "\0" in word:
            raise ValueError("it has a NUL character")
        for name in _ANY.findall(word):
            if name not in PLACEHOLDERS:
                raise ValueError(f"there is no placeholder {{{{{name}}}}}; {known_placeholders()}")
    if _VARIABLE.match(words[0]):
        raise ValueError(f"it begins with the variable {words[0]!r}; put variables into env")
    if shell := next((word for word in words if word in _SHELL), None):
        raise ValueError(f"no shell runs it, so {shell!r} means nothing; write sh -c '…' if you need one")
    return words


def filled(words: Iterable[str], values: Mapping[str, str]) -> tuple[str, ...]:
    """Return ``words`` with every placeholder that ``values`` name filled in; others stay as they are."""
    return tuple(_ANY.sub(lambda found: values.get(found[1], found[0]), word) for word in words)


def uses(template: str, name: str) -> bool:
    """Tell whether the placeholder ``name`` is in a command line."""
    return name in _ANY.findall(template)


def known_placeholders() -> str:
    """Return the known placeholders as the end of a message."""
    return "the known ones are " + ", ".join(f"{{{{{name}}}}}" for name in PLACEHOLDERS)
