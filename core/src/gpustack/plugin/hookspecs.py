"""The hooks. Each is collected once at start-up, takes nothing and returns *classes*, never instances.

Every answer of every plugin is used; an empty list is fine, None is not. A hook that raises, or returns
something else, becomes a named failure of that plugin and changes nothing for the others.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pluggy
from pydantic import BaseModel

from gpustack.plugin.contracts import BundledModel, GpuDetector, InferenceBackend, SystemDetector
from gpustack.plugin.databases import Database
from gpustack.plugin.gateways import Gateway
from gpustack.plugin.login import AuthProvider
from gpustack.plugin.web import WebApp

#: The name of the entry-point group, and of the pluggy project.
PROJECT = "gpustack"

hookspec = pluggy.HookspecMarker(PROJECT)
#: Marks a function of a plugin as the implementation of the hook of that name.
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def register_inference_backends() -> Iterable[type[InferenceBackend[Any]]]:
    """Return the backend classes this plugin brings. Their ``name`` is what ``--backend`` takes."""
    return ()


@hookspec
def register_gpu_detectors() -> Iterable[type[GpuDetector[Any]]]:
    """Return the detector classes this plugin brings. All that are present on a machine are used together."""
    return ()


@hookspec
def register_system_detectors() -> Iterable[type[SystemDetector[Any]]]:
    """Return classes that measure processor and memory. The first present one, sorted by name, is used."""
    return ()


@hookspec
def register_bundled_models() -> Iterable[type[BundledModel[Any]]]:
    """Return the classes of models whose files this plugin carries. Their ``name`` is what ``gpustack deploy`` takes."""
    return ()


@hookspec
def register_web_apps() -> Iterable[type[WebApp[Any]]]:
    """Return the classes of web pages that the server shows, each below a path of its own."""
    return ()


@hookspec
def register_databases() -> Iterable[type[Database[Any]]]:
    """Return the databases this plugin speaks to. Their ``schemes`` are what ``--database-url`` may start with."""
    return ()


@hookspec
def register_gateways() -> Iterable[type[Gateway[Any]]]:
    """Return the gateway classes this plugin brings. Experimental: no gateway is run yet."""
    return ()


@hookspec
def register_auth_providers() -> Iterable[type[AuthProvider[Any]]]:
    """Return the login providers this plugin brings. Experimental: nobody is signed in by one yet."""
    return ()


@hookspec
def register_settings() -> Iterable[type[BaseModel]]:
    """Return settings models whose options several extensions of this plugin share, or none has for itself.

    Each field becomes an option of ``gpustack start``, as those of an extension's ``settings_type`` do; an extension
    that is to read it has the field in its own model too, most simply by inheriting.
    """
    return ()
