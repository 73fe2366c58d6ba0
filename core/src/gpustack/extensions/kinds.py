"""The kinds of extension: which hook brings them, and what a class must have to be used."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from gpustack.extensions.catalogue import shown
from gpustack.plugin import (
    AuthProvider,
    BundledModel,
    Database,
    Extension,
    Gateway,
    GpuDetector,
    InferenceBackend,
    SystemDetector,
    WebApp,
)

#: As the scheme of a URL.
_WORD = re.compile(r"[a-z][a-z0-9+.-]*")
_NAME = re.compile(r"^[a-z0-9]([a-z0-9._-]*[a-z0-9])?$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind: its hook, the catalogue's field, its base class and the class variables it needs."""

    hook: str
    field: str
    base: type[Extension[Any]]
    label: str
    #: Names of class variables that must hold a non-empty text.
    texts: tuple[str, ...] = ()
    #: Names of class variables that must hold a tuple of one or more lower-case words.
    words: tuple[str, ...] = ()


KINDS = (
    Kind(
        hook="register_inference_backends",
        field="backends",
        base=InferenceBackend,
        label="inference backend",
        texts=("default_version",),
    ),
    Kind(
        hook="register_gpu_detectors",
        field="gpu_detectors",
        base=GpuDetector,
        label="GPU detector",
        texts=("vendor",),
    ),
    Kind(
        hook="register_system_detectors",
        field="system_detectors",
        base=SystemDetector,
        label="system detector",
    ),
    Kind(
        hook="register_bundled_models",
        field="bundled_models",
        base=BundledModel,
        label="bundled model",
    ),
    Kind(
        hook="register_web_apps",
        field="web_apps",
        base=WebApp,
        label="web app",
        texts=("path",),
    ),
    Kind(
        hook="register_databases",
        field="databases",
        base=Database,
        label="database",
        words=("schemes",),
    ),
    Kind(
        hook="register_gateways",
        field="gateways",
        base=Gateway,
        label="gateway",
    ),
    Kind(
        hook="register_auth_providers",
        field="auth_providers",
        base=AuthProvider,
        label="login provider",
    ),
)
#: The hook for options that belong to no extension.
SETTINGS_HOOK = "register_settings"


def defect(kind: Kind, candidate: object) -> str | None:
    """Return in one line why ``candidate`` cannot be used as ``kind``, or None when it can."""
    if not isinstance(candidate, type):
        return f"{kind.hook} returned {shown(candidate)}, which is not a class"
    if not issubclass(candidate, kind.base):
        return f"{candidate.__qualname__} is not a subclass of {kind.base.__name__}"
    checks: tuple[Callable[[Kind, type[Extension[Any]]], str | None], ...] = (
        _unfinished,
        _without_name,
        _without_settings,
        _without_variables,
        _wrong_colour,
    )
    for check in checks:
        if reason := check(kind, candidate):
            return f"{candidate.__qualname__} {reason}"
    return None


def _unfinished(_kind: Kind, cls: type[Extension[Any]]) -> str | None:
    missing = sorted(getattr(cls, "__abstractmethods__", ()))
    return f"does not implement {', '.join(missing)}" if missing else None


def _without_name(_kind: Kind, cls: type[Extension[Any]]) -> str | None:
    name = getattr(cls, "name", None)
    if isinstance(name, str) and _NAME.match(name):
        return None
    return f"has the name {shown(name)}; it needs one of lower-case letters, digits, '.', '_' and '-'"


def _without_settings(_kind: Kind, cls: type[Extension[Any]]) -> str | None:
    settings_type = getattr(cls, "settings_type", None)
    if isinstance(settings_type, type) and issubclass(settings_type, BaseModel):
        return None
    return "has no settings_type; set it to a pydantic model, or to NoSettings"


def _without_variables(kind: Kind, cls: type[Extension[Any]]) -> str | None:
    for each in kind.texts:
        value = getattr(cls, each, None)
        if not (isinstance(value, str) and value):
            return f"has no {each}"
    for each in kind.words:
        value = getattr(cls, each, None)
        if not (isinstance(value, tuple) and value and all(_is_word(word) for word in value)):
            return f"has {each} {shown(value)}; it needs a tuple such as ('acme',)"
    return None


def _is_word(value: object) -> bool:
    return isinstance(value, str) and _WORD.fullmatch(value) is not None


def _wrong_colour(kind: Kind, cls: type[Extension[Any]]) -> str | None:
    """Refuse a coroutine where a plain method is called, and the reverse: neither would ever give an answer."""
    for name, wanted in inspect.getmembers(kind.base, inspect.isfunction):
        given = inspect.unwrap(getattr(cls, name, wanted))
        if inspect.iscoroutinefunction(wanted):
            if inspect.isfunction(given) and not inspect.iscoroutinefunction(given):
                return f"has {name} as a plain method; it must be `async def`"
        elif inspect.iscoroutinefunction(given):
            return f"has {name} as `async def`; it must be a plain method"
    return None
