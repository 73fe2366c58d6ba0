"""What is generated from the declared options: the page of the documentation, the example file and the JSON Schema."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterable, Iterator
from enum import Enum
from typing import Any

from pydantic import BaseModel, PydanticUserError

from gpustack.settings.declared import Declared, Options
from gpustack.settings.option import GROUPS

_WIDTH = 110
#: What YAML takes as it stands.
_PLAIN = re.compile(r"[A-Za-z0-9/~.][A-Za-z0-9/~._-]*(:[A-Za-z0-9/][A-Za-z0-9/~._:-]*)?")
#: Example values, where neither the default nor the type makes a good one.
_EXAMPLES: dict[str, str] = {
    "advertise_address": "10.0.0.1",
    "server_url": "http://10.0.0.1",
    "server_external_url": "https://gpustack.example.com",
    "hf_endpoint": "https://hf-mirror.com",
    "database_url": "postgresql://user:password@host:5432/gpustack",
    "ssl_keyfile": "/etc/gpustack/tls.key",
    "ssl_certfile": "/etc/gpustack/tls.crt",
    "token_file": "/etc/gpustack/token",
    "worker_ifname": "eth0",
}

_HEAD = """\
# gpustack start

<!-- Made by `make docs` from the declarations of the options; a test fails when it is stale. -->

Run the server, a worker, or both. Every option has three names: the flag, the environment variable, and the key of the
YAML file that `--config-file` names. A flag comes before a variable, a variable before the file, and the file before the
default, for each option by itself; lists are replaced and not joined.

Switches take `true`, `false`, `1`, `0`, `yes`, `no`, `on` and `off`: `--debug`, `--debug true` and `--no-debug` are all
understood. A list is a repeated flag, a variable with commas or a JSON array, or a YAML list. An empty variable counts as
not set.

[The settings](../settings.md) says how to show, check and reload them."""


def groups(options: Options) -> Iterator[tuple[str, list[Declared]]]:
    """Yield each group's name with its options, in the order of the help."""
    for group in GROUPS:
        yield group, [option for option in options.values() if option.group == group]


def example(options: Options) -> str:
    """Return a YAML file that names every option, each with what it does, its default, and commented out."""
    lines = [
        "# Every option of `gpustack start`, with its default where there is one. Take the # away from what you set.",
        "# Flags come before variables, variables before this file. `gpustack config check --config-file FILE` reads it.",
    ]
    for group, members in groups(options):
        lines += ["", f"# --- {group} ---"]
        for option in members:
            if option.name == "config_file" or option.option.successor:
                continue
            lines.append("")
            lines += textwrap.wrap(_said(option), _WIDTH, initial_indent="# ", subsequent_indent="# ")
            lines.append(f"#{option.name}: {_value(option)}")
    return "\n".join(lines) + "\n"


def _value(option: Declared) -> str:
    if option.name in _EXAMPLES:
        return _EXAMPLES[option.name]
    if option.switch:
        return str(bool(option.default)).lower()
    if option.structured:
        return option.default_shown if str(option.default_shown).startswith("{") else "{}"
    if option.repeatable:
        return option.default_shown or "[]"
    if option.default_shown and not option.option.default_text:
        return _as_yaml(option.default_shown)
    return ""


def _as_yaml(text: str) -> str:
    """Return text as YAML has it: in quotes where it would be read as something else."""
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


def _said(option: Declared) -> str:
    parts = [option.help]
    if option.option.unit:
        parts.append(f"In {option.option.unit}.")
    if option.option.default_text:
        parts.append(f"Default: {option.option.default_text.rstrip('.')}.")
    if option.option.later:
        parts.append(_later(option))
    if option.secret:
        parts.append("Secret: keep this file to yourself (chmod 600).")
    return " ".join(parts)


def _later(option: Declared) -> str:
    what = "refused" if option.option.refused else "without effect"
    return f"This version has no {option.option.later} yet: {what}."


def schema(options: Options) -> dict[str, Any]:
    """Return the JSON Schema of the YAML file."""
    properties: dict[str, Any] = {}
    definitions: dict[str, Any] = {}
    for model in options.models:
        made = _model_schema(model)
        definitions |= made.get("$defs", {})
        for name in model.model_fields:
            option = options.get(name)
            if option is not None and name != "config_file":
                properties[name] = _property(option, made.get("properties", {}).get(name, {}))
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "The config file of gpustack start",
        "type": "object",
        "additionalProperties": False,
        "properties": {name: properties[name] for name in options if name in properties},
        **({"$defs": definitions} if definitions else {}),
    }


def _model_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return a model's schema, empty for a plugin's that has types without one: any value is right to an editor."""
    try:
        return model.model_json_schema(by_alias=False)
    except PydanticUserError:
        return {}


def _property(option: Declared, made: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in made.items() if key not in ("title", "default", "description")}
    if option.structured:
        # As JSON in a text, too.
        kept = {"anyOf": [kept, {"type": "string"}]}
    found = {"description": option.help, **kept}
    if option.default_shown and not option.option.default_text:
        found["default"] = _default(option)
    if option.option.successor:
        found["deprecated"] = True
    if option.secret:
        found["writeOnly"] = True
    return found


def _default(option: Declared) -> Any:
    if option.repeatable or option.structured:
        return json.loads(option.default_shown)
    plain = isinstance(option.default, bool | int | float) and not isinstance(option.default, Enum)
    return option.default if plain else option.default_shown


def page(options: Options) -> str:
    """Return the reference page of ``gpustack start`` as Markdown."""
    parts = [_HEAD]
    for group, members in groups(options):
        parts.append(f"## {group} options")
        parts.append("\n".join(_table(option for option in members if option.flag)))
    bare = [option for option in options.values() if not option.flag]
    if bare:
        parts.append("## Without a flag")
        parts.append("\n".join(_table(bare)))
    parts.append("## The whole file")
    parts.append("`gpustack config example` prints this:")
    parts.append("```yaml\n" + example(options) + "```")
    return "\n\n".join(parts) + "\n"


def _table(members: Iterable[Declared]) -> Iterator[str]:
    yield "| flag, variable, key | default | what it does |"
    yield "| --- | --- | --- |"
    for option in members:
        short = f"`{option.option.short}` " if option.option.short else ""
        flag = (
            f"{short}`{option.flag}{' ' + option.metavar if option.metavar else ''}`" if option.flag else ""
        )
        names = [flag, *(f"`{name}`" for name in option.variables), f"`{option.name}`"]
        default = option.default_shown
        shown = default if option.option.default_text else f"`{default}`" if default else ""
        marks = [
            *(["a secret"] if option.secret else []),
            *(["reloaded without a restart"] if option.reload else []),
            *([f"of plugin {option.plugin}"] if option.plugin else []),
        ]
        said = option.help
        if option.option.later:
            said += f" **{_later(option)}**"
        if marks:
            said += f" ({', '.join(marks)})"
        yield f"| {_cell('<br>'.join(filter(None, names)))} | {_cell(shown)} | {_cell(said)} |"


def _cell(text: str) -> str:
    return (
        " ".join(text.split())
        .replace("|", "\\|")
        .replace("<data-dir>", "`<data-dir>`")
        .replace("<server-url>", "`<server-url>`")
    )
