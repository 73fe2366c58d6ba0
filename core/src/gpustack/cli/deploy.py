"""``gpustack deploy``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from gpustack.cli import complete
from gpustack.cli.by_hand import gpu_options, selection
from gpustack.cli.catalog import catalog_names
from gpustack.cli.names import invalid, labels, variables
from gpustack.cli.output import clean, note
from gpustack.cli.serving import serving_options, split
from gpustack.cli.sources import HubOptions, default_name, read_source
from gpustack.cli.target import Target, json_option, run_async, server_options
from gpustack.cli.usage import Finite, WrongUsage, not_empty
from gpustack.kit.errors import GPUStackError
from gpustack.kit.text import shorten

if TYPE_CHECKING:
    from gpustack.client import Client
    from gpustack.schemas import ModelCreate, ModelPublic


@click.command("deploy")
@click.argument("source", required=False, shell_complete=complete.sources)
@click.option(
    "--name", metavar="NAME", help="What requests call it. [default: from the file's or repository's name]"
)
@click.option(
    "--huggingface-repo", default="", metavar="ORG/NAME", help="Repository on the Hugging Face Hub."
)
@click.option(
    "--huggingface-filename",
    default="",
    metavar="PATTERN",
    help="Files of the repository, as in '*Q4_K_M*.gguf'.",
)
@click.option(
    "--huggingface-revision", default="", metavar="REVISION", help="Branch, tag or commit of the repository."
)
@click.option("--replicas", type=click.IntRange(0, 1000), help="Copies to run.  [default: 1]")
@click.option("--backend", default="", metavar="NAME", help="Backend; chosen by the model otherwise.")
@click.option("--backend-version", default="", metavar="VERSION", help="Version of the engine.")
@click.option(
    "--backend-package",
    "packages",
    multiple=True,
    metavar="REQUIREMENT",
    help="Package beside the engine, as transformers==4.57.1, for an environment of its own; may be repeated.",
)
@click.option(
    "--backend-parameter",
    "-p",
    "parameters",
    multiple=True,
    metavar="ARG",
    help="For the engine; may be repeated.",
)
@click.option(
    "--run-command",
    metavar="COMMAND",
    help="The engine's command line in place of the backend's, as in 'serve --port {{port}} {{model_path}}'.",
)
@click.option(
    "--image-name",
    metavar="IMAGE",
    help="Image of the engine's container, in place of the backend's.",
)
@click.option(
    "--env", "env", multiple=True, metavar="KEY=VALUE", help="Variable of the engine; may be repeated."
)
@gpu_options
@click.option(
    "--worker-selector",
    "selector",
    multiple=True,
    metavar="KEY=VALUE",
    help="Label that its workers must have; may be repeated.",
)
@serving_options
@click.option("--wait/--no-wait", default=True, help="Wait until it runs, or return at once.")
@click.option(
    "--timeout",
    type=Finite(min=0),
    default=3600,
    show_default=True,
    help="Seconds to wait; 0 has no end.",
)
@server_options
@json_option
def command(
    source: str | None, huggingface_repo: str, huggingface_filename: str, huggingface_revision: str,
    name: str | None, env: tuple[str, ...], wait: bool, timeout: float, target: Target, as_json: bool, **spec: Any,
) -> int:  # fmt: skip
    """Serve a model.

    SOURCE is a file or directory on the worker: with a server on this machine it may be relative, for another one give the whole path.
    Or it is a name of `gpustack catalog`, such as demo, the model that comes with GPUStack.
    Or it is a repository of the Hugging Face Hub, as hf:ORG/NAME[:PATTERN][@REVISION]; PATTERN is a file, a pattern of files, or a quantisation such as Q4_K_M.

    Waits until all copies answer, and shows each phase. Ctrl-C ends the waiting, not the deployment.
    """
    if name is not None:
        not_empty("--name", name)
    connection = target.connection(changes=True)
    options = HubOptions(repo=huggingface_repo, filename=huggingface_filename, revision=huggingface_revision)
    fields, named = read_source(source, options, connection, lambda: catalog_names(connection))
    wanted = _model(fields, default_name(named) if name is None else name, env, **spec)
    created: list[ModelPublic] = []
    try:
        return run_async(
            connection,
            lambda client: _deploy(client, wanted, created, wait, timeout or None, as_json=as_json),
        )
    except KeyboardInterrupt:
        if created:
            note(
                f"\n{created[0].name} goes on being deployed; `gpustack ps` shows it, `gpustack rm` ends it."
            )
        raise


def _model(
    source: dict[str, str],
    name: str,
    env: tuple[str, ...],
    *,
    parameters: tuple[str, ...],
    packages: tuple[str, ...] = (),
    selector: tuple[str, ...] = (),
    **spec: Any,
) -> ModelCreate:
    from pydantic import ValidationError

    from gpustack.schemas import ModelCreate

    pairs, wanted = variables(env), labels("--worker-selector", selector)
    if away := next((key for key, value in wanted.items() if value is None), None):
        raise WrongUsage(f"--worker-selector '{away}-': a new model has no selector to take away from")
    serving = split(spec) | selection(spec)
    # What is not named is left to the model, whose bounds may want another number.
    named = {field: value for field, value in spec.items() if value is not None}
    if wanted:
        named["worker_selector"] = wanted
    if packages:
        named["backend_packages"] = list(packages)
    try:
        return ModelCreate.model_validate(
            {
                "name": name,
                "backend_parameters": list(parameters),
                "env": pairs,
                **source,
                **serving,
                **named,
            }
        )
    except ValidationError as error:
        problem = error.errors()[0]
        if problem["loc"] == ("name",):
            raise WrongUsage(
                f"--name {shorten(name, 160)!r}: a name is made of letters, digits and . _ : / - with a letter or digit at both "
                "ends, 128 characters at most"
            ) from error
        if problem["loc"][:1] == ("gpu_selector",):
            raise invalid(error) from error
        field = f"{'.'.join(map(str, problem['loc'])).replace('_', '-')}: " if problem["loc"] else ""
        raise WrongUsage(f"{field}{problem['msg'].removeprefix('Value error, ')}") from error


async def _deploy(
    client: Client,
    wanted: ModelCreate,
    created: list[ModelPublic],
    wait: bool,
    timeout: float | None,
    *,
    as_json: bool,
) -> int:
    from gpustack.cli.progress import progress
    from gpustack.cli.waiting import emit_model, wait_for
    from gpustack.schemas import source_name

    model = await client.models.create(wanted)
    created.append(model)
    if not wait or wanted.replicas == 0:
        if as_json:
            await emit_model(client, model)
        else:
            click.echo(f"Deploying {model.name}; `gpustack ps` shows how far it is.")
        return 0
    if not as_json:
        click.echo(f"Deploying {model.name} from {clean(source_name(model))}")
    failure = ""
    with progress(quiet=as_json) as view:
        failure = await wait_for(client, model, view, timeout)
    if as_json:
        await emit_model(client, model)
    if failure:
        raise GPUStackError(failure)
    if not as_json:
        _say_next(client, await client.models.get(model.id))
    return 0


def _say_next(client: Client, model: ModelPublic) -> None:
    name = model.name
    if not model.categories or "llm" in model.categories:
        click.echo(f"{name} is running. Talk to it:  gpustack chat {name}")
        return
    click.echo(f"{name} is running. Use it:\n  {example(client.base_url, model)}")


def example(url: str, model: ModelPublic) -> str:
    """Return a request for a model that does not chat, ready to paste but for the key."""
    if "reranker" in model.categories:
        path, body = "rerank", f'{{"model": "{model.name}", "query": "…", "documents": ["…", "…"]}}'
    else:
        path, body = "embeddings", f'{{"model": "{model.name}", "input": "Hello"}}'
    return (
        f"curl {url}/v1/{path} -H 'Authorization: Bearer KEY' -H 'Content-Type: application/json' -d '{body}'"
        "   (KEY: `gpustack keys create NAME`)"
    )
