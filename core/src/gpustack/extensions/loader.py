"""Finds plugins by their entry points and loads each inside its own guard.

Every plugin gets a plugin manager of its own. In a common one, a hook that raises would take the answers of all
others with it, and answers could not be told apart by plugin.
"""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Collection, Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

import pluggy
from pydantic import BaseModel

from gpustack.extensions.catalogue import Catalogue, Failure, Plugin, Registered, Stage, one_line
from gpustack.extensions.kinds import KINDS, SETTINGS_HOOK, Kind, defect
from gpustack.plugin import API_VERSION, hookspecs
from gpustack.settings.sources import blocked_plugins

log = logging.getLogger(__name__)


class _DefectError(Exception):
    """A plugin does not keep its side; the text is the whole line."""


def load_catalogue(
    found: Iterable[EntryPoint] | None = None,
    *,
    given: Mapping[str, Any] | None = None,
    blocked: Collection[str] | None = None,
) -> Catalogue:
    """Load every plugin of the entry-point group ``gpustack``, sorted by name, and return what they bring.

    Never raises for a plugin: what fails is in :attr:`Catalogue.failures` and logged as one warning. Of two
    plugins that claim one name the first keeps it, and the failure of the second names both. ``found``
    replaces the search through the installed distributions; ``given`` is what the settings have for plugins. Those
    whose names are ``blocked`` are not even imported; by default GPUSTACK_PLUGINS_BLOCK names them.
    """
    catalogue = Catalogue(given=given or {})
    points = entry_points(group=hookspecs.PROJECT) if found is None else found
    blocked = blocked_plugins() if blocked is None else blocked
    for point in sorted(points, key=lambda each: (each.name, _distribution(each))):
        loading = _Loading(point, catalogue)
        if point.name in blocked:
            loading.block()
        else:
            loading.run()
    return catalogue


class _Loading:
    """The way of one plugin into the catalogue."""

    def __init__(self, point: EntryPoint, catalogue: Catalogue) -> None:
        self._point = point
        self._catalogue = catalogue
        self._plugin = point.name
        self._distribution = _distribution(point)
        self._version = point.dist.version if point.dist is not None else ""
        #: Something of it is in the catalogue.
        self._added = False
        self._deprecated: list[str] = []

    def run(self) -> None:
        """Import, register, check, then collect and add kind by kind."""
        before = len(self._catalogue.failures)
        manager = self._opened()
        if manager is not None:
            for kind in KINDS:
                self._take(kind, manager)
            self._take_settings(manager)
        failures = [each.error for each in self._catalogue.failures[before:]]
        if manager is None or (failures and not self._added):
            self._note("failed", "; ".join(failures))
        else:
            self._note("partly" if failures else "loaded", "; ".join([*failures, *self._deprecated]))

    def block(self) -> None:
        """Leave the plugin alone."""
        self._note("blocked", "GPUSTACK_PLUGINS_BLOCK names it")

    def _note(self, state: Literal["loaded", "partly", "failed", "blocked"], reason: str) -> None:
        known = self._catalogue.plugins
        # Two distributions may call their plugins alike.
        name = self._plugin if self._plugin not in known else f"{self._plugin} ({self._distribution})"
        known[name] = Plugin(
            name=self._plugin,
            distribution=self._distribution,
            version=self._version,
            state=state,
            reason=reason,
        )

    def _opened(self) -> pluggy.PluginManager | None:
        """Return a plugin manager that knows this plugin alone, or None when it cannot be used at all."""
        manager = pluggy.PluginManager(hookspecs.PROJECT)
        manager.add_hookspecs(hookspecs)
        stage: Stage = "import"
        # An import may also end the program by sys.exit(); a plugin does not decide that.
        try:
            module = self._point.load()
            stage = "register"
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always", DeprecationWarning)
                manager.register(module, name=self._plugin)
            self._deprecated = [
                one_line(each.message) for each in said if isinstance(each.message, DeprecationWarning)
            ]
            stage = "check"
            _check_version(module)
            _check_hooks(manager)
        except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever it is, it is the plugin's
            self._fail(stage, error)
            return None
        return manager

    def _take(self, kind: Kind, manager: pluggy.PluginManager) -> None:
        try:
            candidates = _collect(kind.hook, manager)
        except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever it is, it is the plugin's
            self._fail("collect", error)
            return
        for candidate in candidates:
            stage: Stage = "validate"
            try:
                if reason := defect(kind, candidate):
                    raise _DefectError(reason)
                stage = "add"
                self._add(kind, candidate)
            # A class may run its own code when it is looked at.
            except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever it is, it is the plugin's
                self._fail(stage, error)

    def _add(self, kind: Kind, cls: Any) -> None:
        known: dict[str, Registered[Any]] = getattr(self._catalogue, kind.field)
        new = Registered(cls=cls, plugin=self._plugin, distribution=self._distribution, version=self._version)
        if (old := known.get(cls.name)) is not None:
            raise _DefectError(
                f"the {kind.label} {cls.name!r} is claimed by two plugins: {_source(old)}, which is used, and "
                f"{_source(new)}; uninstall one of them"
            )
        self._add_options(cls.settings_type)
        known[cls.name] = new
        self._added = True

    def _take_settings(self, manager: pluggy.PluginManager) -> None:
        try:
            models = _collect(SETTINGS_HOOK, manager)
        except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever it is, it is the plugin's
            self._fail("collect", error)
            return
        for model in models:
            stage: Stage = "validate"
            try:
                if not (isinstance(model, type) and issubclass(model, BaseModel)):
                    raise _DefectError(f"{SETTINGS_HOOK} returned {model!r}, which is no pydantic model")
                stage = "add"
                self._add_options(model)
            except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever it is, it is the plugin's
                self._fail(stage, error)

    def _add_options(self, model: type[BaseModel]) -> None:
        try:
            self._catalogue.options = self._catalogue.options.adding(model, self._plugin)
            self._added = True
        except ValueError as error:
            raise _DefectError(f"{model.__qualname__}: {error}") from error

    def _fail(self, stage: Stage, error: BaseException) -> None:
        failure = Failure(
            plugin=self._plugin,
            distribution=self._distribution,
            version=self._version,
            stage=stage,
            error=str(error) if isinstance(error, _DefectError) else one_line(error),
        )
        self._catalogue.failures.append(failure)
        log.warning("%s", failure, exc_info=error if log.isEnabledFor(logging.DEBUG) else None)


def _check_version(module: object) -> None:
    """Refuse a plugin that was written for another API: ``plugin_api_version = "1.0"`` in its module says for which."""
    wanted = getattr(module, "plugin_api_version", None)
    if wanted is None:
        return
    try:
        major, minor = (int(part) for part in str(wanted).split("."))
    except ValueError as error:
        raise _DefectError(
            f"its plugin_api_version is {wanted!r}; give one such as {API_VERSION!r}"
        ) from error
    ours, most = (int(part) for part in API_VERSION.split("."))
    if major != ours or minor > most:
        raise _DefectError(
            f"it needs version {wanted} of the plugin API, and this GPUStack has {API_VERSION}; "
            + ("upgrade GPUStack" if (major, minor) > (ours, most) else "install a newer version of it")
        )


def _check_hooks(manager: pluggy.PluginManager) -> None:
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        known = ", ".join([*(kind.hook for kind in KINDS), SETTINGS_HOOK])
        raise _DefectError(f"{one_line(error)}; the hooks are {known}") from error


def _collect(hook: str, manager: pluggy.PluginManager) -> list[object]:
    caller = getattr(manager.hook, hook)
    if not caller.get_hookimpls():
        return []
    answers = caller()
    if not answers:  # pluggy leaves out None
        raise _DefectError(f"{hook} returned None; return a list of classes, which may be empty")
    (answer,) = answers
    if inspect.iscoroutine(answer):
        answer.close()
        raise _DefectError(f"{hook} is `async def`; a hook is a plain function")
    if isinstance(answer, str | type) or not isinstance(answer, Iterable):
        raise _DefectError(f"{hook} returned {answer!r}; return a list of classes")
    return list(answer)


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else ""


def _source(registered: Registered[Any]) -> str:
    return f"{registered.plugin} ({registered.distribution} {registered.version})"
