"""Which backends there are, plugins and rows together, and how a model is run with one of them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from gpustack.kit.command_template import uses
from gpustack.kit.errors import InvalidInput
from gpustack.schemas import BackendVersionConfig, InferenceBackendRow, ModelForWorker, ModelPublic
from gpustack.schemas.parameters import in_format

#: The backend of a plugin that serves what rows and models describe.
CUSTOM = "custom"
_AS_IT_IS = BackendVersionConfig()


class Described(Protocol):
    """What of a model decides how its engine is run."""

    backend: str
    backend_version: str
    backend_parameters: list[str]
    image_name: str
    run_command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """How a model is run with one backend."""

    #: What people call it, and the backend of a plugin that serves it: the same, or ``custom`` for a row.
    backend: str
    served_by: str
    version: str
    #: Those of the row, then the model's own.
    parameters: tuple[str, ...]
    config: BackendVersionConfig = _AS_IT_IS
    health_check_path: str = ""

    @property
    def installs(self) -> bool:
        """Whether the plugin's own engine is installed for it, rather than a command or an image used."""
        if self.config.runner == "container":
            return False
        return not self.config.run_command or uses(self.config.run_command, "command")


class KnownBackends:
    """All backends at one moment. ``versions`` holds the default version of each that a plugin brings, in order."""

    def __init__(self, versions: Mapping[str, str], rows: Iterable[InferenceBackendRow] = ()) -> None:
        self.versions = versions
        self.rows = {each.backend_name: each for each in rows}

    @property
    def automatic(self) -> list[str]:
        """Those to choose among for a model that names none."""
        return [name for name in self.versions if name != CUSTOM]

    @property
    def served_by_custom(self) -> frozenset[str]:
        """The names of rows that no plugin brings."""
        return frozenset(self.rows.keys() - self.versions.keys())

    def __iter__(self) -> Iterator[str]:
        """Yield the names of all."""
        yield from dict.fromkeys([*self.versions, *sorted(self.rows)])

    def named(self, name: str) -> str:
        """Return the backend that ``name`` means, whatever its case. InvalidInput when there is none."""
        known = list(self)
        if name in known:
            return name
        alike = [each for each in known if each.casefold() == name.casefold()]
        if len(alike) == 1:
            return alike[0]
        raise InvalidInput(
            f"backend: there is no {name!r}; installed are {', '.join(sorted(known)) or 'none'}"
        )

    def reads_anything(self, model: Described) -> bool:
        """Tell whether the model's engine is somebody's own, which may read files that GPUStack cannot."""
        return bool(model.backend) and (model.backend == CUSTOM or model.backend in self.served_by_custom)

    def engines(self, model: Described) -> list[Engine]:
        """Return the ways to run ``model``: with the backend it names, or with any. None of them may fit."""
        if model.backend:
            try:
                return [self.engine(model, model.backend)]
            except InvalidInput:
                return []
        return [self.engine(model, name) for name in self.automatic]

    def trouble(self, model: Described) -> str:
        """Return why the backend that ``model`` names cannot serve it at all; empty when it may."""
        try:
            if model.backend:
                self.engine(model, model.backend)
        except InvalidInput as error:
            return error.message
        return ""

    def engine(self, model: Described, name: str, version: str = "") -> Engine:
        """Return how ``model`` is run with the backend ``name``, in ``version`` or the one that it means.

        Raises InvalidInput with one line when it cannot be.
        """
        row = self.rows.get(name)
        served_by = name if name in self.versions else CUSTOM
        if (row is None and served_by != name) or served_by not in self.versions:
            names = ", ".join(self) or "none"
            raise InvalidInput(f"backend {name!r} is not installed; there are: {names}")
        version = version or model.backend_version
        if row is None and not (model.image_name or model.run_command or served_by == CUSTOM):
            return Engine(
                backend=name,
                served_by=served_by,
                version=version or self.versions[name],
                parameters=tuple(model.backend_parameters),
            )
        version, entry = self._version(name, row, version)
        config = _joined(model, row, entry)
        if served_by == CUSTOM:
            _check_custom(name, config)
        parameters = [*(row.default_backend_param if row is not None else ()), *model.backend_parameters]
        wanted = row.parameter_format if row is not None else ""
        return Engine(
            backend=name,
            served_by=served_by,
            version=version,
            parameters=in_format(parameters, wanted or ("words" if served_by == CUSTOM else "")),
            config=config,
            health_check_path=row.health_check_path if row is not None else "",
        )

    def _version(
        self, name: str, row: InferenceBackendRow | None, version: str
    ) -> tuple[str, BackendVersionConfig | None]:
        """Return the version that is meant, and what the row says of it."""
        configs = row.version_configs if row is not None else {}
        version = version or (row.default_version if row is not None else "")
        if name in self.versions:
            version = version or self.versions[name]
            return version, configs.get(version)
        if not configs:
            return version or self.versions[CUSTOM], None
        version = version or max(configs, key=_ordered)
        if version not in configs:
            raise InvalidInput(
                f"backend {name} has no version {version!r}; it has {', '.join(sorted(configs, key=_ordered))}"
            )
        return version, configs[version]


def for_worker(model: ModelPublic, known: KnownBackends, *, backend: str, version: str) -> ModelForWorker:
    """Return ``model`` as an instance with this backend and version is to be run."""
    described = model.model_dump()
    try:
        engine = known.engine(model, backend, version)
    except InvalidInput as error:
        return ModelForWorker.model_validate({**described, "trouble": error.message})
    return ModelForWorker.model_validate(
        {
            **described,
            "backend_parameters": list(engine.parameters),
            "served_by": engine.served_by,
            "config": engine.config,
            "health_check_path": engine.health_check_path,
        }
    )


def uses_row(
    versions: Mapping[str, str], model: Described, running: Collection[str], row: InferenceBackendRow
) -> bool:
    """Tell whether ``model`` could not do without the row.

    It names the row's backend, or none and runs with it; ``running`` are the versions of its instances there.
    """
    if row.backend_name not in versions:
        return True
    return any(each in row.version_configs for each in (*running, *_meant(versions, model, row)))


def breaks(
    versions: Mapping[str, str],
    model: Described,
    running: Collection[str],
    old: InferenceBackendRow,
    new: InferenceBackendRow,
) -> bool:
    """Tell whether ``model``, as in :func:`uses_row`, can be run with the old row alone.

    An instance keeps its version when its engine starts anew, also when the model means another one by then.
    """
    if old.backend_name not in versions:
        before, after = (KnownBackends(versions, [each]) for each in (old, new))
        return any(_runs(before, model, each) and not _runs(after, model, each) for each in ("", *running))
    changes = [*zip(running, running, strict=True)]
    changes += zip(_meant(versions, model, old), _meant(versions, model, new), strict=True)
    return any(was in old.version_configs and now not in new.version_configs for was, now in changes)


def _meant(versions: Mapping[str, str], model: Described, row: InferenceBackendRow) -> list[str]:
    """Return the version of a plugin's backend that the model's next instance gets; none when it may get another."""
    if not model.backend:
        return []
    return [model.backend_version or row.default_version or versions[row.backend_name]]


def _runs(known: KnownBackends, model: Described, version: str) -> bool:
    try:
        known.engine(model, model.backend, version)
    except InvalidInput:
        return False
    return True


def _joined(
    model: Described, row: InferenceBackendRow | None, entry: BackendVersionConfig | None
) -> BackendVersionConfig:
    """Return what the model, its version and the row say together, in this order of weight."""
    # Of a plugin's backend, versions that the row does not list are left as the plugin has them.
    mine = row is not None and (entry is not None or not row.version_configs)
    entry = entry or _AS_IT_IS
    contained = bool(model.image_name) or entry.runner == "container"
    default_command = row.default_run_command if row is not None and mine else ""
    default_entrypoint = row.default_entrypoint if row is not None and mine else ""
    return BackendVersionConfig(
        runner="container" if contained else "process",
        image_name=model.image_name or entry.image_name,
        run_command=model.run_command or entry.run_command or default_command,
        entrypoint=(entry.entrypoint or default_entrypoint) if contained else "",
        env={**(row.default_env if row is not None else {}), **entry.env},
        packages=[] if contained else entry.packages,
        custom_framework=entry.custom_framework,
        memory_limit=entry.memory_limit,
    )


def _check_custom(name: str, config: BackendVersionConfig) -> None:
    if config.runner == "container":
        if not config.image_name:
            raise InvalidInput(f"backend {name}: a container needs an image_name")
    elif not config.run_command:
        raise InvalidInput(
            f"backend {name} needs a run_command or an image_name: in the model, or in a version of the backend"
        )
    if config.packages:
        raise InvalidInput(
            f"backend {name}: packages go into the environment of an engine that a plugin installs, and a command of "
            "one's own has none"
        )
    if uses(config.run_command, "command"):
        raise InvalidInput(
            f"backend {name}: {{{{command}}}} is the engine that a plugin installs, and here none does; name the program"
        )


def _ordered(version: str) -> tuple[tuple[int, int, str], ...]:
    """Return what versions are sorted by: numbers as numbers."""
    parts = re.findall(r"\d+|[A-Za-z]+", version)
    return tuple((1, int(each), "") if each.isdigit() else (0, 0, each) for each in parts)
