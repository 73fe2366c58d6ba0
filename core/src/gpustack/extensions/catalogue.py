"""What the installed plugins bring, by kind and name, and what of them did not work."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from gpustack.kit.errors import SettingsError
from gpustack.kit.text import shorten
from gpustack.plugin import (
    AuthProvider,
    BundledModel,
    Database,
    Extension,
    Gateway,
    GpuDetector,
    Host,
    InferenceBackend,
    PluginError,
    SystemDetector,
    WebApp,
)
from gpustack.settings.declared import CORE, Options

log = logging.getLogger(__name__)

E = TypeVar("E", bound=Extension[Any])

#: Where a plugin failed, in the order in which it is loaded and then used.
Stage = Literal["import", "register", "check", "collect", "validate", "add", "open"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered(Generic[E]):
    """One extension class with where it comes from."""

    cls: type[E]
    #: The name of the plugin's entry point.
    plugin: str
    distribution: str
    #: The version of the distribution.
    version: str

    @property
    def name(self) -> str:
        """Return what users call the extension."""
        return self.cls.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A plugin, or a part of one, that could not be used. ``error`` is one line."""

    plugin: str
    distribution: str
    version: str
    stage: Stage
    error: str

    def __str__(self) -> str:
        return (
            f"plugin {self.plugin} ({self.distribution} {self.version}) failed at {self.stage}: {self.error}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    """One entry point. ``reason`` says in a line why it failed or was blocked, or what of it is deprecated."""

    name: str
    distribution: str
    version: str
    state: Literal["loaded", "partly", "failed", "blocked"]
    reason: str = ""


#: The fields of a catalogue that hold extensions.
_FIELDS = (
    *("backends", "gpu_detectors", "system_detectors", "bundled_models"),
    *("web_apps", "databases", "gateways", "auth_providers"),
)


@dataclass(slots=True, kw_only=True)
class Catalogue:
    """Every usable extension by its name, sorted by plugin; and every failure."""

    backends: dict[str, Registered[InferenceBackend[Any]]] = field(default_factory=dict)
    gpu_detectors: dict[str, Registered[GpuDetector[Any]]] = field(default_factory=dict)
    system_detectors: dict[str, Registered[SystemDetector[Any]]] = field(default_factory=dict)
    bundled_models: dict[str, Registered[BundledModel[Any]]] = field(default_factory=dict)
    web_apps: dict[str, Registered[WebApp[Any]]] = field(default_factory=dict)
    databases: dict[str, Registered[Database[Any]]] = field(default_factory=dict)
    gateways: dict[str, Registered[Gateway[Any]]] = field(default_factory=dict)
    auth_providers: dict[str, Registered[AuthProvider[Any]]] = field(default_factory=dict)
    #: Every plugin that was found, by name, also those that bring nothing.
    plugins: dict[str, Plugin] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    #: The options of the core, and those that the plugins add.
    options: Options = field(default_factory=lambda: CORE)
    #: What was given for the options of plugins, by name.
    given: Mapping[str, Any] = field(default_factory=dict)
    #: What was loaded and then could not be opened.
    _unfit: list[Registered[Any]] = field(default_factory=list)

    def names(self) -> dict[str, list[str]]:
        """Return the names by kind, the field of the catalogue, as a worker reports them: of what can be used."""
        return {
            name: sorted(
                each for each, registered in getattr(self, name).items() if registered not in self._unfit
            )
            for name in ("backends", "gpu_detectors", "system_detectors", "bundled_models")
        }

    def note_unfit(self, registered: Registered[Any], error: str) -> None:
        """Remember that an extension was loaded and then could not be opened, so that the list of plugins tells."""
        if registered in self._unfit:
            return
        self._unfit.append(registered)
        self.failures.append(
            Failure(
                plugin=registered.plugin,
                distribution=registered.distribution,
                version=registered.version,
                stage="open",
                error=error,
            )
        )
        for name, known in self.plugins.items():
            if (known.name, known.distribution) == (registered.plugin, registered.distribution):
                reason = "; ".join(filter(None, (known.reason, error)))
                state: Literal["partly", "failed"] = "partly" if self._rest_of(registered) else "failed"
                self.plugins[name] = replace(known, state=state, reason=reason)

    def _rest_of(self, registered: Registered[Any]) -> bool:
        """Tell whether the same plugin brings something else that can be used."""
        everything = (each for kind in _FIELDS for each in getattr(self, kind).values())
        return any(
            (each.plugin, each.distribution) == (registered.plugin, registered.distribution)
            and each not in self._unfit
            for each in everything
        )

    def make(self, registered: Registered[E], host: Host) -> E:
        """Return a new instance with its settings.

        Raises SettingsError when a setting has no default and none is given, PluginError when the class itself
        cannot be made; both are one line naming the plugin.
        """
        cls = registered.cls
        settings = _settings(registered, self.given)
        try:
            return cls(settings, host)
        except (PluginError, KeyboardInterrupt):
            raise
        except BaseException as error:  # a class may even try to end the program
            log.exception("plugin %s: %s cannot be made", registered.plugin, registered.name)
            raise PluginError(
                f"plugin {registered.plugin}: {registered.name} cannot be made: {one_line(error)}"
            ) from error


def _settings(registered: Registered[Any], given: Mapping[str, Any]) -> BaseModel:
    settings_type: type[BaseModel] = registered.cls.settings_type
    try:
        return settings_type.model_validate(
            {name: given[name] for name in settings_type.model_fields if name in given}, by_name=True
        )
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        named = ", ".join(".".join(map(str, each["loc"])) or each["msg"] for each in problems)
        what = (
            "that are not given" if all(each["type"] == "missing" for each in problems) else "that are right"
        )
        raise SettingsError(
            f"{registered.name} (plugin {registered.plugin}) needs settings {what}: {named}"
        ) from error
    except Exception as error:
        # Without the error's own words, which may hold a secret.
        what = f"its check of settings fails ({type(error).__name__})"
        raise PluginError(f"plugin {registered.plugin}: {registered.name} cannot be made: {what}") from error


#: Characters of an error of a plugin that people are shown.
LONGEST = 400


def one_line(error: BaseException) -> str:
    """Return the error with its kind as one line, for people who never see the traceback.

    The lines of its text are joined: what is wrong is often said in the last one.
    """
    kind = type(error).__name__
    try:
        text = "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
    except Exception:
        log.debug("an error that cannot be shown", exc_info=True)
        text = ""
    return shorten(f"{kind}: {text}" if text else kind, LONGEST)


def shown(value: object) -> str:
    """Return what a plugin gave as a message shows it: a short line, whatever it says of itself."""
    try:
        text = repr(value)
    except Exception:
        log.debug("a value that cannot be shown", exc_info=True)
        text = f"a {type(value).__name__}"
    return shorten(" ".join(text.split()), 120)
