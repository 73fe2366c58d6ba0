"""Reads the settings: flag before environment variable before YAML file before default, for each option.

dynaconf reads the variables and the file, as raw text: its casts (``@format``, ``@jinja``) stay off, so no
value can run code. It ends here; what leaves this module is a checked :class:`Settings`.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gpustack.kit.errors import SettingsError
from gpustack.settings.model import Settings
from gpustack.settings.options import BY_NAME, ENV_PREFIX, OPTIONS, Option

_ONLY_FOR_SERVERS = ("disable_worker", "database_url", "bootstrap_password")


@dataclass(frozen=True, slots=True)
class _Given:
    value: object
    #: Where it came from, as a message names it.
    origin: str


def load(flags: Mapping[str, str]) -> Settings:
    """Return the settings for these flags (by option name, as typed) and this process's environment.

    Raises SettingsError whose message has one line for each thing that is wrong.
    """
    variables = _from_environment()
    file = flags.get("config_file") or _text(variables.get("config_file"))
    given: dict[str, _Given] = {}
    if file:
        given.update(_from_file(Path(file).expanduser()))
    given.update(variables)
    given.update({name: _Given(value, BY_NAME[name].flag) for name, value in flags.items()})
    given.pop("config_file", None)
    problems = _contradictions(given)
    if problems:
        raise SettingsError("\n".join(problems))
    settings = _checked(given)
    _refuse_one_port_twice(settings, given)
    return _with_token(settings, given)


def _contradictions(given: Mapping[str, _Given]) -> list[str]:
    """Return a line for each two settings of which only one can be meant."""
    problems = []
    if "token" in given and not _is_set(given, "token"):
        problems.append(f"{given['token'].origin} is empty; leave it out, or give a token")
    if _is_set(given, "token") and _is_set(given, "token_file"):
        problems.append(
            f"{given['token'].origin} and {given['token_file'].origin} both give the token; leave one out"
        )
    if _is_set(given, "server_url"):
        problems += [
            f"{given[name].origin} is for a server, and {given['server_url'].origin} makes this machine a worker of "
            "another one; leave one out"
            for name in _ONLY_FOR_SERVERS
            if _is_set(given, name)
        ]
    return problems


def _refuse_one_port_twice(settings: Settings, given: Mapping[str, _Given]) -> None:
    """Raise SettingsError when one machine is to listen twice on a port; 0 is any free one."""
    alone = settings.server_url or settings.disable_worker
    if settings.port and settings.port == settings.worker_port and not alone:
        port, worker_port = (
            given[name].origin if name in given else BY_NAME[name].flag for name in ("port", "worker_port")
        )
        raise SettingsError(f"{port} and {worker_port} are both {settings.port}; give two ports")


def _is_set(given: Mapping[str, _Given], name: str) -> bool:
    """Tell whether a setting says something; a switch may be given as off."""
    if name not in given:
        return False
    text = str(given[name].value).strip().lower()
    return bool(text) and not (BY_NAME[name].switch and text in ("false", "0", "no", "off"))


def _with_token(settings: Settings, given: Mapping[str, _Given]) -> Settings:
    """Read the file that holds the token, if one is named."""
    if settings.token_file is None:
        return settings
    where = f"{given['token_file'].origin} {settings.token_file}"
    try:
        token = settings.token_file.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise SettingsError(f"{where} is no text; it must hold the token alone") from error
    except OSError as error:
        if _has_joined(settings):
            return settings
        raise SettingsError(f"{where} cannot be read: {error.strerror}") from error
    if not token:
        raise SettingsError(f"{where} is empty; copy the token of the server there, its <data-dir>/token")
    if len(token.split()) > 1 or not token.isprintable():
        raise SettingsError(f"{where} holds more than a token; it must hold the token alone")
    return settings.model_copy(update={"token": token})


def _has_joined(settings: Settings) -> bool:
    """Tell whether this is a worker with a credential of its own, which needs the token no more."""
    return bool(settings.server_url) and (settings.data_dir / "worker" / "credential").is_file()


def _text(given: _Given | None) -> str:
    return "" if given is None else str(given.value)


def _from_environment() -> dict[str, _Given]:
    from dynaconf import Dynaconf

    raw = Dynaconf(
        envvar_prefix=ENV_PREFIX.rstrip("_"),
        settings_files=[],
        core_loaders=[],
        auto_cast=False,
        load_dotenv=False,
    ).as_dict()
    # An empty variable is how container tools say "not set".
    found = {
        option.name: _Given(os.environ[option.also], option.also)
        for option in OPTIONS
        if option.also and os.environ.get(option.also)
    }
    found |= {
        option.name: _Given(raw[option.name.upper()], option.variable)
        for option in OPTIONS
        if raw.get(option.name.upper()) not in (None, "")
    }
    return found


def _from_file(path: Path) -> dict[str, _Given]:
    values = _read_yaml(path)
    problems = [
        f"{path}: {_unknown(str(key))}" for key in values if key not in BY_NAME or key == "config_file"
    ]
    if problems:
        raise SettingsError("\n".join(problems))
    return {key: _Given(value, f"{key} in {path}") for key, value in values.items() if value is not None}


def _read_yaml(path: Path) -> dict[str, Any]:
    from yaml import YAMLError, safe_load

    try:
        content = path.read_text(encoding="utf-8")
        # dynaconf upper-cases keys and merges silently: the keys as written are needed to name a wrong one.
        keys = safe_load(content)
    except OSError as error:
        raise SettingsError(f"--config-file {path} cannot be read: {error.strerror}") from error
    # An impossible date is a ValueError, and what is nested too deeply a RecursionError.
    except (ValueError, RecursionError, YAMLError) as error:
        raise _not_yaml(path, error) from error
    if keys is None:
        return {}
    if not isinstance(keys, dict):
        raise SettingsError(f"--config-file {path} must hold keys with values, such as `port: 80`")
    _refuse_keys_twice(path, content)
    raw = _through_dynaconf(path)
    return {str(key): raw.get(str(key).upper(), value) for key, value in keys.items()}


def _through_dynaconf(path: Path) -> dict[str, Any]:
    from dynaconf import Dynaconf

    # By name, because its source is none that type checkers can read.
    trouble: type[Exception] = import_module("dynaconf.vendor.ruamel.yaml.error").YAMLError
    try:
        return dict(
            Dynaconf(
                settings_files=[str(path)],
                loaders=[],
                core_loaders=["YAML"],
                auto_cast=False,
                load_dotenv=False,
            ).as_dict()
        )
    # It has a parser of its own, which is of another opinion here and there.
    except (ValueError, RecursionError, trouble) as error:
        raise _not_yaml(path, error) from error


def _not_yaml(path: Path, error: Exception) -> SettingsError:
    where = getattr(error, "problem_mark", None)
    place = f" at line {where.line + 1}" if where else ""
    why = " ".join(str(getattr(error, "problem", None) or error).split())
    return SettingsError(f"--config-file {path} is not YAML{place}: {why}")


def _refuse_keys_twice(path: Path, content: str) -> None:
    """Raise SettingsError for a key that a mapping has twice: which one is meant, nobody can tell."""
    from yaml import MappingNode, Node, SafeLoader, compose

    nodes: list[Node | None] = [compose(content, Loader=SafeLoader)]
    # An alias may lead into what it stands in.
    seen: set[int] = set()
    while nodes:
        node = nodes.pop()
        if not isinstance(node, MappingNode) or id(node) in seen:
            continue
        seen.add(id(node))
        lines: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if (first := lines.setdefault(str(key.value), line)) != line:
                raise SettingsError(
                    f"--config-file {path} has {_shorten(key.value)} twice, at lines {first} and {line}; leave one out"
                )
            nodes.append(value)


def _unknown(key: str) -> str:
    near = difflib.get_close_matches(key, BY_NAME, n=1)
    return f"{_shorten(key)} is not an option" + (f"; did you mean {near[0]!r}?" if near else "")


def _checked(given: Mapping[str, _Given]) -> Settings:
    try:
        return Settings.model_validate({name: item.value for name, item in given.items()})
    except ValidationError as error:
        lines = [_problem(given, problem) for problem in error.errors(include_url=False)]
        raise SettingsError("\n".join(dict.fromkeys(lines))) from error


def _problem(given: Mapping[str, _Given], problem: Any) -> str:
    name = str(problem["loc"][0]) if problem["loc"] else ""
    option: Option | None = BY_NAME.get(name)
    if option is None or name not in given:
        return str(problem["msg"])
    item = given[name]
    shown = "" if option.secret else f" {_shorten(item.value)}"
    reason = str(problem["msg"]).removeprefix("Value error, ")
    if name == "database_url":
        reason = "give a URL such as postgresql://user:password@host:5432/name"
    inner = ".".join(str(part) for part in problem["loc"][1:])
    return f"{item.origin}{shown}: {inner + ': ' if inner else ''}{reason}"


def _shorten(value: object) -> str:
    text = str(value)
    return repr(text if len(text) <= 80 else text[:77] + "…")
