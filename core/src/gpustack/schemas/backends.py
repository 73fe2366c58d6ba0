"""Inference backends, as the installed plugins describe them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from gpustack.schemas.common import Output

#: How an engine is run: a process of the worker's machine, or a container there.
Runner = Literal["process", "container"]


class BackendVersionConfig(BaseModel):
    """How one version of a backend is run, where that is not left to the plugin."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    runner: Runner = "process"
    #: The image of a container, with or without a registry.
    image_name: str = Field(default="", max_length=512)
    #: Replaces the command line of the plugin; words in braces are filled in.
    run_command: str = Field(default="", max_length=8192)
    #: Replaces the entry point of the image.
    entrypoint: str = Field(default="", max_length=1024)
    env: dict[str, str] = {}
    #: More packages for the version's environment, as pip's requirements name them.
    packages: list[str] = []


class InferenceBackendPublic(Output):
    """One backend. ``installed_versions`` are those found on workers, by worker name."""

    id: int
    backend_name: str
    default_version: str
    #: The plugin it comes from, with that plugin's distribution and version.
    plugin: str
    distribution: str
    distribution_version: str
    installed_versions: dict[str, list[str]] = {}
