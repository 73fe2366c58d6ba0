"""The settings of an embedded server: the declared options, given as values, with nothing read from anywhere else."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from gpustack.kit.errors import SettingsError
from gpustack.kit.text import shorten
from gpustack.settings.declared import Options
from gpustack.settings.kinds import absolute_path
from gpustack.settings.model import Settings

#: What the program around it decides, and how.
_ELSEWHERE = {
    "data_dir": "give it as the argument data_dir",
    "database_url": "give it as the argument database_url",
    "disable_worker": "there is a worker where EmbeddedWorker runs",
    "server_url": "a worker joins the server that EmbeddedWorker is given",
    "token_file": "give the token itself",
    "config_file": "give the values themselves",
    **dict.fromkeys(
        (
            "port",
            "tls_port",
            "api_port",
            "ssl_keyfile",
            "ssl_certfile",
            "trusted_proxies",
            "gateway_header_timeout",
            "gateway_body_timeout",
            "gateway_keep_alive_timeout",
        ),
        "the program that mounts the server listens",
    ),
    **dict.fromkeys(
        ("advertise_address", "worker_ip", "worker_ifname", "worker_port"),
        "an embedded worker is reached on loopback",
    ),
    "debug": "the program around it configures logging",
}


def checked(
    given: Mapping[str, Any], options: Options, *, data_dir: Path, database_url: str | None
) -> Settings:
    """Return the settings; ``given`` is by the names of the YAML file. Raises SettingsError with a line for each problem."""
    problems = [line for name in given if (line := _unwanted(name, options))]
    core = {name: value for name, value in given.items() if name in Settings.model_fields}
    plugins = {name: value for name, value in given.items() if name in options and name not in core}
    for model, plugin in options.models.items():
        if plugin:
            problems += _of_plugin(model, plugins)
    own = {"data_dir": data_dir, "database_url": database_url or "", "plugins": plugins}
    try:
        settings = Settings.model_validate({**core, **own})
    except ValidationError as error:
        raise SettingsError("\n".join(dict.fromkeys([*problems, *_lines(error)]))) from None
    if problems:
        raise SettingsError("\n".join(dict.fromkeys(problems)))
    return settings


def place(given: Path | str) -> Path:
    """Return a data directory's absolute path, wherever the program goes later. Raises SettingsError when it is none."""
    try:
        return absolute_path(given).absolute()
    except ValueError as error:
        raise SettingsError(f"data_dir: {error}") from None


def _unwanted(name: object, options: Options) -> str | None:
    if not isinstance(name, str):
        return (
            f"{shorten(repr(name), 80)} is not an option: an option is named by a text, such as 'worker_name'"
        )
    if name in _ELSEWHERE:
        return f"{name}: {_ELSEWHERE[name]}"
    if name not in options:
        usable = [each for each in options if each not in _ELSEWHERE]
        near = difflib.get_close_matches(name.lower().replace("-", "_"), usable, n=1)
        return f"{shorten(repr(name), 80)} is not an option" + (
            f"; did you mean {near[0]!r}?" if near else ""
        )
    return None


def _of_plugin(model: type[BaseModel], given: Mapping[str, Any]) -> Iterable[str]:
    values = {name: given[name] for name in model.model_fields if name in given}
    if not values:
        return ()
    try:
        model.model_validate(values, by_name=True)
    except ValidationError as error:
        return _lines(error)
    return ()


def _lines(error: ValidationError) -> list[str]:
    """Return what is wrong, without the values, which may be secrets. What is missing is said to who uses it."""
    return [
        f"{'.'.join(map(str, each['loc']))}: {each['msg'].removeprefix('Value error, ')}"
        for each in error.errors(include_url=False, include_input=False)
        if each["type"] != "missing"
    ]
