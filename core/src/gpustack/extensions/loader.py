"""Finds plugins by their entry points and loads each inside its own guard.

Every plugin gets a plugin manager of its own. In a common one, a hook that raises would take the answers of all
others with it, and answers could not be told apart by plugin.
"""

from __future__ import annotations

import inspect
import logging
import re
import threading
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, requires
from typing import Any, Literal

import pluggy
from packaging.utils import canonicalize_name
from pydantic import BaseModel

from gpustack.extensions.catalogue import (
    LONGEST,
    Catalogue,
    Failure,
    Plugin,
    Registered,
    Stage,
    one_line,
    shown,
)
from gpustack.extensions.kinds import KINDS, SETTINGS_HOOK, Kind, defect
from gpustack.kit.text import shorten
from gpustack.plugin import API_VERSION, hookspecs
from gpustack.settings.sources import blocked_plugins

log = logging.getLogger(__name__)


#: The distribution of this package.
_CORE = "gpustack-core"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
#: Seconds of loading after which a plugin is named.
_SLOW = 4.0


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
    plugins that claim one name ours keeps it, else the first, and the failure of the second names both. ``found``
    replaces the search through the installed distributions; ``given`` is what the settings have for plugins. Those
    whose names are ``blocked`` are not even imported; by default GPUSTACK_PLUGINS_BLOCK names them.
    """
    catalogue = Catalogue(given=given or {})
    points = entry_points(group=hookspecs.PROJECT) if found is None else found
    blocked = blocked_plugins() if blocked is None else blocked
    ours = _ours()
    # Ours first: whoever claims a name of ours must not have it.
    for point in sorted(
        points,
        key=lambda each: (canonicalize_name(_distribution(each)) not in ours, each.name, _distribution(each)),
    ):
        loading = _Loading(point, catalogue)
        if point.name in blocked:
            loading.block()
        else:
            with _telling_of_a_slow_one(point):
                loading.run()
    catalogue.options = catalogue.options.lacking(
        each.name for each in catalogue.plugins.values() if each.state in ("failed", "blocked")
    )
    return catalogue


def _ours() -> set[str]:
    """Return the distributions that GPUStack is made of: the core, and what the distribution ``gpustack`` asks for."""
    try:
        asked = requires("gpustack") or []
    except PackageNotFoundError:  # the core alone, in another program
        asked = []
    return {_CORE, *(canonicalize_name(found[0]) for each in asked if (found := _NAME.match(each)))}


@contextmanager
def _telling_of_a_slow_one(point: EntryPoint) -> Iterator[None]:
    """Say whose import takes so long: nothing can end it but whoever waits for it."""
    line = f"plugin {point.name} ({_distribution(point)}) is still loading; GPUSTACK_PLUGINS_BLOCK={point.name} leaves it out"
    timer = threading.Timer(_SLOW, log.warning, (line,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class _Loading:
    """The way of one plugin into the catalogue."""

    def __init__(self, point: EntryPoint, catalogue: Catalogue) -> None:
        self._point = point
        self._catalogue = catalogue
        self._plugin = point.name
        self._distribution = _distribution(point)
        self._version = (point.dist.version if point.dist is not None else "") or ""
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
            module = _loaded(self._point)
            stage = "register"
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always", DeprecationWarning)
                _register(manager, module, self._plugin)
            self._deprecated = [
                one_line(each.message) for each in said if isinstance(each.message, DeprecationWarning)
            ]
            stage = "check"
            _check_version(module)
            _check_hooks(manager)
            _check_marks(manager, module)
        except KeyboardInterrupt:  # somebody waits for a plugin that hangs
            raise
        except BaseException as error:  # noqa: BLE001  # whatever it is, it is the plugin's
            self._fail(stage, error)
            return None
        return manager

    def _take(self, kind: Kind, manager: pluggy.PluginManager) -> None:
        try:
            candidates = _collect(kind.hook, manager)
        except KeyboardInterrupt:  # somebody waits for a plugin that hangs
            raise
        except BaseException as error:  # noqa: BLE001  # whatever it is, it is the plugin's
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
            except KeyboardInterrupt:  # somebody waits for a plugin that hangs
                raise
            except BaseException as error:  # noqa: BLE001  # whatever it is, it is the plugin's
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
        except KeyboardInterrupt:  # somebody waits for a plugin that hangs
            raise
        except BaseException as error:  # noqa: BLE001  # whatever it is, it is the plugin's
            self._fail("collect", error)
            return
        for model in models:
            stage: Stage = "validate"
            try:
                if not (isinstance(model, type) and issubclass(model, BaseModel)):
                    raise _DefectError(f"{SETTINGS_HOOK} returned {shown(model)}, which is no pydantic model")
                stage = "add"
                self._add_options(model)
            except KeyboardInterrupt:  # somebody waits for a plugin that hangs
                raise
            except BaseException as error:  # noqa: BLE001  # whatever it is, it is the plugin's
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
            error=shorten(str(error), LONGEST) if isinstance(error, _DefectError) else one_line(error),
        )
        self._catalogue.failures.append(failure)
        log.warning("%s", failure, exc_info=error if log.isEnabledFor(logging.DEBUG) else None)


def _register(manager: pluggy.PluginManager, module: object, name: str) -> None:
    try:
        manager.register(module, name=name)
    except pluggy.PluginValidationError as error:
        hook = next((kind.hook for kind in KINDS if kind.hook in str(error)), SETTINGS_HOOK)
        raise _DefectError(f"its {hook} takes arguments; a hook takes none") from error


def _loaded(point: EntryPoint) -> object:
    if point.pattern.match(point.value) is None:
        raise _DefectError(f"its entry point is {shown(point.value)}; name a module, as in 'gpustack_acme'")
    return point.load()


def _check_marks(manager: pluggy.PluginManager, module: object) -> None:
    """Refuse a plugin that marks nothing: it would be loaded, and nobody would learn why nothing of it is there."""
    if any(manager.get_hookcallers(module) or ()):
        return
    hooks = {*(kind.hook for kind in KINDS), SETTINGS_HOOK}
    bare = sorted(name for name in hooks if callable(getattr(module, name, None)))
    if bare:
        raise _DefectError(f"{', '.join(bare)} is not marked with @hookimpl, so nothing of it is used")
    what = "" if inspect.ismodule(module) else f": its entry point names {shown(module)}, which is no module"
    raise _DefectError(f"it has no hook{what}; mark a function such as {KINDS[0].hook} with @hookimpl")


def _check_version(module: object) -> None:
    """Refuse a plugin that was written for another API: ``plugin_api_version = "1.0"`` in its module says for which."""
    wanted = getattr(module, "plugin_api_version", None)
    if wanted is None:
        return
    try:
        major, minor = (int(part) for part in str(wanted).split("."))
    except ValueError as error:
        raise _DefectError(
            f"its plugin_api_version is {shown(wanted)}; give one such as {API_VERSION!r}"
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
        found = re.search(r"unknown hook '(\w+)'", str(error))
        what = f"{found[1]} is no hook" if found else one_line(error)
        raise _DefectError(f"{what}; the hooks are {known}") from error


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
        raise _DefectError(f"{hook} returned {shown(answer)}; return a list of classes")
    return list(answer)


def _distribution(point: EntryPoint) -> str:
    # What a removal that was cut off has left may have no name any more.
    return (point.dist.name if point.dist is not None else "") or ""


def _source(registered: Registered[Any]) -> str:
    return f"{registered.plugin} ({registered.distribution} {registered.version})"
