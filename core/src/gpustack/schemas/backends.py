"""Inference backends: those of the installed plugins, and those that people describe in rows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from gpustack.kit.command_template import uses, words_of
from gpustack.schemas.common import Input, Output, Record, Title
from gpustack.schemas.packages import normal_packages

#: How an engine is run: a process of the worker's machine, or a container there.
Runner = Literal["process", "container"]
#: How parameters are handed on: as ``--name value`` or as ``--name=value``; empty as they were given.
ParameterFormat = Literal["", "space", "equal"]

#: An image with registry, path, tag or digest, and ``{{version}}`` anywhere; the container engine knows the rest.
IMAGE_NAME = r"^([A-Za-z0-9{][A-Za-z0-9._/:@{}\[\]-]*)?$"
#: What a command of one's own cannot have.
_NO_ENGINE = "{{command}} is the engine that a plugin installs, and here none does; name the program"
#: Versions of one backend, and its default parameters.
MOST = 200
#: A model names backend and version, so neither is longer than there.
BackendName = Annotated[
    Title,
    StringConstraints(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$"),
]
VersionName = Annotated[
    str, StringConstraints(min_length=1, max_length=64, pattern=r"^[0-9A-Za-z][0-9A-Za-z.+_-]*$")
]
ENV_NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")

#: What other systems' files and our own answers hold besides, and what follows from the rest.
_DERIVED = frozenset(
    {
        "id",
        "created_at",
        "updated_at",
        "is_built_in",
        "built_in_version_configs",
        "framework_index_map",
        "backend_source",
        "owner_principal_id",
        "icon",
        "common_parameters",
        "allowed_proxy_uris",
        "plugin",
        "distribution",
        "distribution_version",
        "installed_versions",
    }
)


def command_line(text: str) -> str:
    """Return a command line that can be split and filled in. Raises ValueError with one line."""
    if text.strip():
        words_of(text)
    return text.strip()


def variables(env: dict[str, str]) -> dict[str, str]:
    """Return environment variables that can be set. Raises ValueError for the first that cannot."""
    for name, value in env.items():
        if not ENV_NAME.match(name) or "\0" in value:
            raise ValueError(f"{name!r} is not an environment variable")
    return env


def _given(data: Any, *leave_out: str) -> Any:
    """Return the fields of ``data`` that say something: null stands for the default."""
    if not isinstance(data, Mapping):
        return data
    return {name: value for name, value in data.items() if value is not None and name not in leave_out}


class BackendVersionConfig(BaseModel):
    """How one version of a backend is run, where that is not left to the plugin."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    runner: Runner = "process"
    #: The image of a container, with or without a registry.
    image_name: str = Field(default="", max_length=512, pattern=IMAGE_NAME)
    #: Replaces the command line of the plugin; words in double braces are filled in.
    run_command: str = Field(default="", max_length=8192)
    #: Replaces the entry point of the image.
    entrypoint: str = Field(default="", max_length=1024)
    env: dict[str, str] = {}
    #: More packages for the version's environment, as pip's requirements name them.
    packages: list[str] = []
    #: The kind of accelerator that its author had in mind, such as ``cuda``; kept and shown.
    custom_framework: str = Field(default="", max_length=64)
    #: Bytes of RAM beyond which the system ends the engine; 0 sets no limit.
    memory_limit: int = Field(default=0, ge=0, le=1 << 60)

    @model_validator(mode="before")
    @classmethod
    def _image_means_container(cls, data: Any) -> Any:
        data = _given(data, "built_in_frameworks")
        if isinstance(data, dict) and data.get("image_name") and "runner" not in data:
            return {**data, "runner": "container"}
        return data

    @field_validator("run_command")
    @classmethod
    def _can_be_filled(cls, text: str) -> str:
        return command_line(text)

    @field_validator("env")
    @classmethod
    def _names(cls, env: dict[str, str]) -> dict[str, str]:
        return variables(env)

    @field_validator("packages")
    @classmethod
    def _requirements(cls, packages: list[str]) -> list[str]:
        normal_packages(packages)
        return [each.strip() for each in packages]

    @model_validator(mode="after")
    def _goes_together(self) -> BackendVersionConfig:
        if self.runner == "process":
            for name in ("image_name", "entrypoint"):
                if getattr(self, name):
                    raise ValueError(f"{name} goes with runner container, and this one is process")
        elif self.packages:
            raise ValueError("packages go with runner process; put them into the image of a container")
        return self


class InferenceBackendUpdate(Input):
    """The whole new description of a backend in a row. The name stays.

    Fields that follow from others, such as ``is_built_in``, may be there and are left out.
    """

    backend_name: BackendName
    #: How each version is run.
    version_configs: dict[VersionName, BackendVersionConfig] = Field(default_factory=dict, max_length=MOST)
    #: The version of models that name none; empty is the plugin's, or the latest of ``version_configs``.
    default_version: str = Field(default="", max_length=64)
    #: Parameters of every engine, before those of its model.
    default_backend_param: list[str] = Field(default_factory=list, max_length=MOST)
    #: The command line of versions that have none of their own.
    default_run_command: str = Field(default="", max_length=8192)
    #: The same for the entry point of an image.
    default_entrypoint: str = Field(default="", max_length=1024)
    #: Environment of every engine; that of its version wins, and that of its model over both.
    default_env: dict[str, str] = Field(default_factory=dict)
    #: The path whose answer tells that an engine is ready; empty is ``/health``, or the plugin's.
    health_check_path: str = Field(default="", max_length=1024, pattern=r"^(/[\x21-\x7e]*)?$")
    parameter_format: ParameterFormat = ""
    description: str = Field(default="", max_length=4096)

    @model_validator(mode="before")
    @classmethod
    def _without_derived(cls, data: Any) -> Any:
        data = _given(data, *_DERIVED)
        if isinstance(data, dict) and data.get("enabled") is True:
            del data["enabled"]
        return data

    @field_validator("default_run_command")
    @classmethod
    def _can_be_filled(cls, text: str) -> str:
        return command_line(text)

    @field_validator("default_env")
    @classmethod
    def _names(cls, env: dict[str, str]) -> dict[str, str]:
        return variables(env)


class InferenceBackendCreate(InferenceBackendUpdate):
    """A backend to describe: a new one, or more versions of one that a plugin brings, by its name."""


class InferenceBackendYaml(Input):
    """A backend as the text of a YAML file."""

    content: str = Field(min_length=1, max_length=1 << 20)


def lacking(wanted: InferenceBackendUpdate) -> tuple[tuple[str, ...], str] | None:
    """Return what keeps a backend that no plugin brings from running: the place of the field, and a clause; or None."""
    default, configs = wanted.default_version, wanted.version_configs
    if default and configs and default not in configs:
        return ("default_version",), f"{default!r} is not in version_configs: {', '.join(configs)}"
    if not configs and not wanted.default_run_command:
        return ("backend_name",), "a backend of your own has a default_run_command, or version_configs"
    if uses(wanted.default_run_command, "command"):
        return ("default_run_command",), _NO_ENGINE
    for version, config in configs.items():
        place = ("version_configs", version)
        if config.runner == "container":
            if not config.image_name:
                return place, "a container needs an image_name"
        elif not (config.run_command or wanted.default_run_command):
            return place, "it has neither run_command nor image_name, and there is no default_run_command"
        if uses(config.run_command, "command"):
            return (*place, "run_command"), _NO_ENGINE
        if config.packages:
            return (
                (*place, "packages"),
                "they go into the environment of an engine that a plugin installs, and a command of one's own has none",
            )
    return None


class InferenceBackendRow(Record):
    """A backend in a row, as it was described."""

    backend_name: str
    version_configs: dict[str, BackendVersionConfig] = {}
    default_version: str = ""
    default_backend_param: list[str] = []
    default_run_command: str = ""
    default_entrypoint: str = ""
    default_env: dict[str, str] = {}
    health_check_path: str = ""
    parameter_format: ParameterFormat = ""
    description: str = ""


class InferenceBackendPublic(Output):
    """One backend: what its plugin brings and what its row says.

    ``installed_versions`` are those found on workers, by worker name. A backend without a row has no ``created_at``,
    and a number of its own instead of a row's.
    """

    id: int
    backend_name: str
    default_version: str
    #: The plugin it comes from, with that plugin's distribution and version; empty for one that is a row alone.
    plugin: str
    distribution: str
    distribution_version: str
    installed_versions: dict[str, list[str]] = {}
    is_built_in: bool = True
    version_configs: dict[str, BackendVersionConfig] = {}
    default_backend_param: list[str] = []
    default_run_command: str = ""
    default_entrypoint: str = ""
    default_env: dict[str, str] = {}
    health_check_path: str = ""
    parameter_format: ParameterFormat = ""
    description: str = ""
    created_at: datetime | None = None
    updated_at: datetime | None = None


class BackendVersion(Output):
    """A version that a model may name."""

    version: str
    is_deprecated: bool = False


class InferenceBackendListItem(Output):
    """A backend in short, as whoever deploys a model needs it."""

    backend_name: str
    is_built_in: bool
    default_version: str
    default_backend_param: list[str] = []
    versions: list[BackendVersion] = []


class InferenceBackendList(Output):
    """All backends in short."""

    items: list[InferenceBackendListItem]
