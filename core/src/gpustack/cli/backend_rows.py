"""``gpustack backends apply``, ``show`` and ``delete``: backends that people describe."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gpustack.cli.output import clean, emit_json
from gpustack.cli.target import Target, json_option, server_options
from gpustack.kit.errors import NotFound

if TYPE_CHECKING:
    from gpustack.client import Client
    from gpustack.schemas import BackendVersionConfig, InferenceBackendCreate, InferenceBackendPublic


@click.command("apply")
@click.argument("file", metavar="FILE.yaml", type=click.Path(path_type=Path))
@server_options
@json_option
def apply(file: Path, target: Target, as_json: bool) -> None:
    """Describe a backend by a YAML file: a new one, or what is there already anew.

    One of the name of a plugin's backend adds versions to that one. Engines that run go on as they are.
    """
    from gpustack.cli.yaml_places import as_usage, read_text
    from gpustack.schemas.backend_yaml import read_backend

    text = read_text(file)

    def read(plugins: Container[str] | None = None) -> InferenceBackendCreate:
        with as_usage():
            return read_backend(text, file, plugins)

    name = read().backend_name  # what is wrong with it in any case needs no server
    backend, created = target.ask(lambda client: _apply(client, name, read), changes=True)
    if as_json:
        emit_json({**backend.model_dump(mode="json"), "created_now": created})
        return
    versions = ", ".join(backend.version_configs) or backend.default_version or "one version"
    click.echo(f"{'Added' if created else 'Changed'} {backend.backend_name}: {versions}.")


async def _apply(
    client: Client, name: str, read: Callable[[Container[str]], InferenceBackendCreate]
) -> tuple[InferenceBackendPublic, bool]:
    try:
        before = await client.backends.by_name(name)
    except NotFound:
        return await client.backends.create(read(())), True
    wanted = read((name,) if before.is_built_in else ())
    return await client.backends.update(before.id, wanted), before.created_at is None


@click.command("show")
@click.argument("name")
@click.option("--yaml", "as_yaml", is_flag=True, help="As a file for `gpustack backends apply`.")
@server_options
@json_option
def show(name: str, as_yaml: bool, target: Target, as_json: bool) -> None:
    """Show one backend with all its versions."""
    from gpustack.schemas.backend_yaml import write_backend

    backend = target.ask(lambda client: client.backends.by_name(name))
    if as_yaml:
        click.echo(write_backend(backend), nl=False)
    elif as_json:
        emit_json(backend.model_dump(mode="json"))
    else:
        for title, value in _facts(backend):
            click.echo(f"{title:<12}{clean(value)}")


@click.command("delete")
@click.argument("name")
@server_options
@json_option
def delete(name: str, target: Target, as_json: bool) -> None:
    """Remove what was described of a backend.

    Refused while models run with it. What a plugin brings stays.
    """

    async def ask(client: Client) -> InferenceBackendPublic:
        backend = await client.backends.by_name(name)
        await client.backends.delete(backend.id)
        return backend

    backend = target.ask(ask, changes=True)
    if as_json:
        emit_json({"removed": backend.backend_name, "is_built_in": backend.is_built_in})
    else:
        left = f"; {backend.distribution} still brings it" if backend.is_built_in else ""
        click.echo(f"Removed the description of {backend.backend_name}{left}.")


def _facts(backend: InferenceBackendPublic) -> Iterator[tuple[str, str]]:
    yield "Name", backend.backend_name
    if backend.description:
        yield "About", backend.description
    origin = f"{backend.distribution} {backend.distribution_version}" if backend.is_built_in else "described"
    yield "From", f"{origin} and described" if backend.is_built_in and backend.created_at else origin
    yield "Default", backend.default_version or "the latest version"
    if backend.default_run_command:
        yield "Command", backend.default_run_command
    if backend.default_backend_param:
        yield "Parameters", " ".join(backend.default_backend_param)
    if backend.default_env:
        # Values may be secrets; --json has them.
        yield "Variables", ", ".join(backend.default_env)
    if backend.health_check_path:
        yield "Health", backend.health_check_path
    for version, config in backend.version_configs.items():
        yield "Version", f"{version}: {_said(config)}"
    for worker, versions in backend.installed_versions.items():
        yield "Installed", f"{', '.join(versions)} on {worker}"


def _said(config: BackendVersionConfig) -> str:
    parts = [f"image {config.image_name}" if config.image_name else "", config.run_command]
    parts += [f"with {', '.join(config.packages)}" if config.packages else ""]
    parts += [f"variables {', '.join(config.env)}" if config.env else ""]
    return "; ".join(each for each in parts if each) or "as the default"
