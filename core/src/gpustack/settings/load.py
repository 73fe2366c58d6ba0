"""Reads the settings: flag before environment variable before YAML file before default, for each option.

    loaded = read({"port": "9080"}, CORE)
    loaded.problems, loaded.warnings, loaded.origin("port")
    settings = loaded.checked()

Nothing else in the program looks at the environment for settings.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gpustack.kit.errors import SettingsError
from gpustack.settings.declared import CORE, Declared, Options
from gpustack.settings.deprecated import take_successors
from gpustack.settings.kinds import absolute_path, is_shared_secret
from gpustack.settings.model import Settings
from gpustack.settings.option import ENV_PREFIX
from gpustack.settings.sources import (
    OTHER_VARIABLES,
    FileError,
    Given,
    is_of_kubernetes,
    is_service_link,
    read_environment,
    read_file,
    shorten_key,
)

#: The flags as they were typed, by the option's name; those that may be repeated with all their values.
Flags = Mapping[str, str | Sequence[str]]

_ONLY_FOR_SERVERS = ("disable_worker", "database_url", "bootstrap_password")
_YES = {"true", "1", "yes", "on"}
_NO = {"false", "0", "no", "off"}
#: How deep lists and objects may lie in each other; whoever writes them down later has a limit, too.
_DEEPEST = 50
#: The password in a URL: up to the last @ before its path, or else, for one with a slash or space in it, before its end.
_PASSWORD = re.compile(r"://([^/?#:\[]*):(?:[^/?#\s]*|(?!\d{1,5}[/?#\s])[\s\S]*)@")
_SECRET_PARAMETER = re.compile(r"([?&][^=&#]*(?:password|secret|token|signature)=)[^&#]+", re.IGNORECASE)
#: What pydantic says in words of its own, as our messages say it.
_REASONS = {
    "int_parsing": "give a whole number",
    "int_type": "give a whole number",
    "int_from_float": "give a whole number",
    "float_parsing": "give a number",
    "float_type": "give a number",
    "finite_number": "give a number",
    "string_type": "give text",
    "dict_type": "give a JSON object",
    "extra_forbidden": "there is no such key",
    "missing": "this is missing",
    "too_short": "give at least one",
    "literal_error": "give {expected}",
    "enum": "give {expected}",
    "greater_than_equal": "give {ge:g} or more",
    "less_than_equal": "give {le:g} or less",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What was read. ``settings`` has the default where what was given is wrong."""

    settings: Settings
    options: Options
    #: What was given and is right, by name.
    given: Mapping[str, Given]
    #: The names of what is wrong.
    wrong: frozenset[str]
    problems: tuple[str, ...]
    warnings: tuple[str, ...]

    def checked(self) -> Settings:
        """Return the settings. Raises SettingsError with a line for each thing that is wrong."""
        if self.problems:
            raise SettingsError("\n".join(self.problems))
        return self.settings

    def origin(self, name: str) -> str:
        """Return how a message names the option: where its value came from, or else its flag."""
        return self.given[name].origin if name in self.given else self.options[name].flag or name

    def value(self, name: str) -> Any:
        """Return the effective value of any option."""
        if name in Settings.model_fields:
            return getattr(self.settings, name)
        return self.settings.plugins.get(name, self.options[name].default)


def load(flags: Flags, options: Options = CORE) -> Settings:
    """Return the settings for these flags and this process's environment. Raises SettingsError, as ``checked`` does."""
    return read(flags, options).checked()


def read(flags: Flags, options: Options = CORE) -> Loaded:
    """Return what these flags, this process's environment and the file give; what is wrong is in the answer."""
    reading = _Reading(options)
    given = reading.collect(flags)
    reading.warnings += take_successors(given, options)
    reading.contradictions(given)
    return reading.validated(given)


class _Reading:
    """One reading, with what has turned up so far."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.problems: list[str] = []
        self.warnings: list[str] = []
        self.wrong: set[str] = set()

    # Sources --------------------------------------------------------------------------------------------

    def collect(self, flags: Flags) -> dict[str, Given]:
        """Return one value for each option that has one, of the source that wins."""
        variables = self._variables()
        typed = {
            name: Given(value=value, kind="flag", origin=self.options[name].flag)
            for name, value in flags.items()
        }
        given = {**self._file(typed.get("config_file") or variables.get("config_file")), **variables, **typed}
        for name in list(given):
            self._normalise(given, name)
        self._typed_secrets(given)
        return given

    def _variables(self) -> dict[str, Given]:
        environment = read_environment()
        found: dict[str, Given] = {}
        for name, option in self.options.items():
            for variable in option.variables:
                text = environment.get(variable, "")
                if text and is_service_link(text):
                    self.warnings.append(
                        f"{variable}={text} is not used: Kubernetes sets it for a service called gpustack; "
                        "`enableServiceLinks: false` in the pod stops that"
                    )
                elif text:
                    found[name] = Given(value=text, kind="variable", origin=variable)
                    break
        self._unknown_variables(environment)
        return found

    def _unknown_variables(self, environment: Mapping[str, str]) -> None:
        known = {variable for option in self.options.values() for variable in option.variables}
        known |= {ENV_PREFIX + name for name in OTHER_VARIABLES}
        for name, text in sorted(environment.items()):
            if name.startswith(ENV_PREFIX) and name not in known and not is_of_kubernetes(name, text):
                self.warnings.append(
                    f"{shorten_key(name)} is no option and has no effect{self._meant(name, known, ENV_PREFIX)}"
                )

    def _file(self, named: Given | None) -> dict[str, Given]:
        if named is None:
            return {}
        try:
            path = absolute_path(named.value)
        except ValueError:
            return {}  # the check of the value says so
        try:
            values = read_file(path)
        except FileError as error:
            self.problems.append(error.message.replace("--config-file", named.origin, 1))
            return {}
        found: dict[str, Given] = {}
        for key, item in values.items():
            if key not in self.options or key == "config_file":
                known = [name for name in self.options if name != "config_file"]
                where = item.origin.removeprefix(shorten_key(key))
                self.problems.append(f"{key[:60]!r}{where} is not an option{self._meant(key, known)}")
            elif item.value is not None:
                found[key] = item
        return found

    def _meant(self, name: str, known: Iterable[str], prefix: str = "") -> str:
        """Return what was probably meant, or whose option it may be, as the end of a line."""
        # Which options it would have had is known to the plugin alone.
        names = ", ".join(self.options.missing)
        return _meant(name, known, prefix) + (
            f"; a plugin that is not loaded may have it: {names}" if names else ""
        )

    # Values ---------------------------------------------------------------------------------------------

    def _normalise(self, given: dict[str, Given], name: str) -> None:
        """Give a value the form that its type is checked in; leave out one that cannot have it."""
        item, option = given[name], self.options[name]
        try:
            value = _normal(item.value, option)
        except ValueError as error:
            self._refuse(given, name, str(error))
        else:
            given[name] = replace(item, value=value)

    def _refuse(self, given: dict[str, Given], name: str, reason: str, where: Sequence[Any] = ()) -> None:
        """Say what is wrong with a value, or with what is at ``where`` in it, and leave it out."""
        self._say(given.pop(name), name, reason, where)

    def _say(self, item: Given, name: str, reason: str, where: Sequence[Any] = ()) -> None:
        self.wrong.add(name)
        value, inner = item.value, list(where)
        if inner and isinstance(inner[0], int) and isinstance(value, list):
            value = value[inner.pop(0)]
        if (nested := item.inside(name, where)) and isinstance(item.value, dict):
            inner_value = "" if self.options[name].secret else _shown_at(item.value, where)
            self.problems.append(f"{nested}{inner_value}: {' '.join(reason.split())}")
            return
        shown = "" if self.options[name].secret else f" {_shown(value)}"
        place = f"{'.'.join(map(str, inner))}: " if inner else ""
        self.problems.append(f"{item.origin}{shown}: {place}{' '.join(reason.split())}")

    def _typed_secrets(self, given: Mapping[str, Given]) -> None:
        for name, item in given.items():
            option = self.options[name]
            if item.kind != "flag" or not holds_secret(option, item.value):
                continue
            file = ", --token-file" if name == "token" else ""
            self.warnings.append(
                f"{item.origin} shows in the list of processes; give it by {option.variable}{file} or in the "
                "config file"
            )

    def contradictions(self, given: dict[str, Given]) -> None:
        """Note each two settings of which only one can be meant."""
        if "token" in given and not given["token"].value:
            self._refuse(given, "token", "it is empty; leave it out, or give a token")
        if "token" in given and "token_file" in given:
            self._both(given, "token", "token_file", "both give the token; leave one out")
        self._server_and_worker(given)
        for one, other in (("ssl_keyfile", "ssl_certfile"), ("ssl_certfile", "ssl_keyfile")):
            if one in given and other not in given and other not in self.wrong:
                self.problems.append(
                    f"{given[one].origin} is given without {self.options[other].flag}; give both"
                )
        origins = given.get("allow_origins")
        everybody = "*" in origins.value if origins else "allow_origins" not in self.wrong
        if everybody and _is_on(given, "enable_cors") and _is_on(given, "allow_credentials"):
            where = origins.origin if origins else f"{self.options['allow_origins'].flag}, which is"
            self.problems.append(
                f"{given['allow_credentials'].origin} and {where} *: credentials are for origins that are named; "
                "give --allow-origins https://example.com"
            )

    def _both(self, given: Mapping[str, Given], one: str, other: str, what: str) -> None:
        self.problems.append(f"{given[one].origin} and {given[other].origin} {what}")

    def _server_and_worker(self, given: dict[str, Given]) -> None:
        """A file may be for all machines; what is typed is for this one."""
        url = given.get("server_url")
        if url is None or not url.value:
            return
        for name in _ONLY_FOR_SERVERS:
            item = given.get(name)
            if item is None or not item.value:
                continue
            line = (
                f"{item.origin} is for a server, and {url.origin} makes this machine a worker of another one"
            )
            if item.kind == "file":
                self.warnings.append(f"{line}; it has no effect")
                del given[name]
            else:
                self.problems.append(f"{line}; leave one out")
        idle = [
            item.origin
            for name, item in given.items()
            if self.options[name].group == "Server"
            and name not in _ONLY_FOR_SERVERS
            and not self.options[name].option.later
            and item.value not in (self.options[name].default, list(_several(self.options[name].default)))
        ]
        if idle:
            self.warnings.append(
                f"{', '.join(idle)}: for a server, and without effect on a worker of another one"
            )

    # Checking -------------------------------------------------------------------------------------------

    def validated(self, given: dict[str, Given]) -> Loaded:
        """Return the settings of what is right; what is not is noted and left out."""
        settings = Settings()
        theirs: dict[str, Any] = {}
        for model, plugin in self.options.models.items():
            while True:
                values = {name: given[name].value for name in model.model_fields if name in given}
                try:
                    made = model.model_validate(values, by_name=True)
                except ValidationError as error:
                    if not self._note(given, error, plugin):
                        break
                except Exception as error:
                    if not plugin:
                        raise
                    # Without the error's own words, which may hold a secret.
                    what = f"its check of options fails ({type(error).__name__})"
                    self.problems.append(f"plugin {plugin}: {what}")
                    break
                else:
                    if isinstance(made, Settings):
                        settings = made
                    else:
                        theirs |= {name: _kept(getattr(made, name), value) for name, value in values.items()}
                    break
        settings = settings.model_copy(update={"plugins": theirs})
        self._later(given)
        return self._with_token(settings, given)

    def _note(self, given: dict[str, Given], error: ValidationError, plugin: str) -> bool:
        """Note what is wrong and leave it out; False when there is nothing to leave out, so that trying again is idle."""
        before = dict(given)
        problems = error.errors(include_url=False)
        # A list is also too short when what is in it is wrong.
        others = {problem["loc"][:1] for problem in problems if problem["type"] != "too_short"}
        for problem in problems:
            if problem["type"] == "too_short" and problem["loc"][:1] in others:
                continue
            reason = _REASONS.get(problem["type"], "").format_map(problem.get("ctx", {}))
            reason = reason or problem["msg"].removeprefix("Value error, ")
            name = str(problem["loc"][0]) if problem["loc"] else ""
            if name in before:
                given.pop(name, None)
                option = self.options[name]
                if option.secret and option.plugin and problem["type"] not in _REASONS:
                    reason = "it is not right"  # a plugin's own words may quote it
                self._say(before[name], name, reason, problem["loc"][1:])
            elif name in self.wrong or problem["type"] == "missing":
                pass  # who uses the extension is told what it needs
            # What is wrong with the core's own follows from something given, as the places below the data directory do.
            elif plugin:
                self.problems.append(f"plugin {plugin}: {' '.join(reason.split())}")
        self.problems[:] = dict.fromkeys(self.problems)
        return len(given) < len(before)

    def _later(self, given: dict[str, Given]) -> None:
        """Say of what this version has no use for yet that it has none."""
        idle: dict[str, list[str]] = {}
        for name in list(given):
            item, option = given[name], self.options[name]
            what = option.option.later
            # Kubernetes sets POD_NAMESPACE, and nobody who typed something.
            if not what or item.origin == option.option.also or not item.value:
                continue
            if option.option.refused:
                self._refuse(given, name, f"{what} is not part of this version yet; leave it out")
            elif item.value not in (option.default, str(option.default), option.default_shown):
                idle.setdefault(what, []).append(item.origin)
        self.warnings += [
            f"{', '.join(origins)}: read and checked, but without effect: this version has no {what} yet"
            for what, origins in idle.items()
        ]

    def _with_token(self, settings: Settings, given: Mapping[str, Given]) -> Loaded:
        """Read the file that holds the token, if one is named."""
        if settings.token_file is not None and "token_file" in given and "token" not in given:
            try:
                token = _token_of(settings, given["token_file"].origin)
            except SettingsError as error:
                self.problems.append(error.message)
                self.wrong.add("token_file")
            else:
                settings = settings.model_copy(update={"token": token})
        return Loaded(
            settings=settings,
            options=self.options,
            given=given,
            wrong=frozenset(self.wrong),
            problems=tuple(dict.fromkeys(self.problems)),
            warnings=tuple(dict.fromkeys(self.warnings)),
        )


def _normal(value: Any, option: Declared) -> Any:
    """Return ``value`` in the form that its type is checked in. Raises ValueError with what would be right."""
    if option.switch:
        return _boolean(value)
    if option.repeatable:
        value = _list(value)
    elif option.structured and isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                "give a JSON object such as " + (option.default_shown or '{"key": "value"}')
            ) from error
    elif isinstance(value, dict | list | tuple) and not option.structured:
        raise ValueError("give one value, not several")
    elif option.annotation is str and isinstance(value, bool | int | float):
        # YAML has read it as something else, and 0123 is 83 to it.
        raise ValueError("give text; in the file, put it in quotes")
    _check_plain(value, _DEEPEST)
    if option.annotation is Path:
        value = str(absolute_path(value))
    return value


def _check_plain(value: Any, levels: int) -> None:
    """Raise ValueError for what nobody can read, in whatever it lies."""
    if isinstance(value, str) and not value.replace("\n", "").replace("\t", "").isprintable():
        raise ValueError("it has a character that cannot be shown; give plain text")
    inner = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ()
    if inner and not levels:
        raise ValueError("it is nested too deeply")
    for each in inner:
        _check_plain(each, levels - 1)


def _boolean(value: object) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text in _YES:
        return True
    if text in _NO:
        return False
    raise ValueError("give true or false")


def _list(value: object) -> list[Any]:
    """Return several values: of a repeated flag or a YAML list, else of text with commas or a JSON array."""
    if isinstance(value, dict):
        raise ValueError("give a list")
    if isinstance(value, list | tuple):
        return [part for each in value for part in (_list(each) if isinstance(each, str) else [each])]
    text = str(value).strip()
    if text.startswith("["):
        try:
            parsed = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                'give values with commas between them, or a JSON array such as ["GET"]'
            ) from error
        return list(parsed)
    return [part.strip() for part in text.split(",") if part.strip()]


def _several(value: Any) -> Sequence[Any]:
    return value if isinstance(value, tuple | list) else ()


def _is_on(given: Mapping[str, Given], name: str) -> bool:
    return name in given and given[name].value is True


def holds_secret(option: Declared, value: Any) -> bool:
    """Tell whether a value has to stay out of output; where the database is, is no secret by itself."""
    if option.name == "database_url":
        return without_password(str(value)) != str(value)
    return option.secret and bool(value)


def _kept(checked: Any, given: Any) -> Any:
    """Return a plugin's value as JSON can hold it: numbers and switches as they were checked, else as given."""
    plain = isinstance(checked, bool | int | float) and not isinstance(checked, Enum)
    return checked if plain else given


def _token_of(settings: Settings, origin: str) -> str:
    file = settings.token_file
    assert file is not None
    where = f"{origin} {file}"
    try:
        token = file.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise SettingsError(f"{where} is no text; it must hold the token alone") from error
    except (OSError, ValueError) as error:
        if _has_joined(settings):
            return settings.token
        raise SettingsError(f"{where} cannot be read: {getattr(error, 'strerror', error)}") from error
    if not token:
        raise SettingsError(f"{where} is empty; copy the token of the server there, its <data-dir>/token")
    if len(token.split()) > 1 or not is_shared_secret(token):
        raise SettingsError(f"{where} holds more than a token; it must hold the token alone, in ASCII")
    return token


def _has_joined(settings: Settings) -> bool:
    """Tell whether this is a worker with a credential of its own, which needs the token no more."""
    try:
        return bool(settings.server_url) and (settings.data_dir / "worker" / "credential").is_file()
    except OSError:
        return False


def _meant(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Return what was probably meant, as the end of a line; names alike in nothing but the prefix are not."""
    # Also where it is written as a flag, or in the other case.
    names = {_as_key(each.removeprefix(prefix)): each for each in known}
    near = difflib.get_close_matches(_as_key(name.removeprefix(prefix)), names, n=1)
    return f"; did you mean {names[near[0]]!r}?" if near else ""


def _as_key(name: str) -> str:
    return name.lower().replace("-", "_")


def _shown(value: object) -> str:
    """Return a value as a message shows it, without the password of a URL."""
    plain = json.dumps(value, default=str) if isinstance(value, dict | list) else str(value)
    text = without_password(plain)
    return repr(text if len(text) <= 80 else text[:77] + "…")


def _shown_at(value: Any, place: Sequence[Any]) -> str:
    """Return what is at ``place``, behind a space, as a message shows it; "" for what is missing."""
    for step in place:
        try:
            value = value[step]
        except (LookupError, TypeError):
            return ""
    return f" {_shown(value)}"


def without_password(text: str) -> str:
    """Return ``text`` with ``***`` in the place of passwords in URLs."""
    return _SECRET_PARAMETER.sub(r"\1***", _PASSWORD.sub(r"://\1:***@", text))
