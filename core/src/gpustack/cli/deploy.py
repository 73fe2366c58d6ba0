"""``gpustack deploy``."""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import aclosing, suppress
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import click

from gpustack.cli.output import clean, emit_json, note
from gpustack.cli.target import Connection, Target, json_option, run_async, server_options
from gpustack.kit.errors import GPUStackError, InvalidInput, NotFound

if TYPE_CHECKING:
    from gpustack.cli.progress import Progress
    from gpustack.cli.rollout import Outcome, Rollout
    from gpustack.client import Client
    from gpustack.schemas import Event, ModelCreate, ModelInstancePublic, ModelPublic

#: Seconds without the server after which waiting for a deployment is given up.
_SERVER_PATIENCE = 60.0
_TICK = 0.25


@click.command("deploy")
@click.argument("path")
@click.option("--name", metavar="NAME", help="What requests call it. [default: from the file's name]")
@click.option("--replicas", type=click.IntRange(0, 1000), default=1, show_default=True, help="Copies to run.")
@click.option("--backend", default="", metavar="NAME", help="Backend; chosen by the model otherwise.")
@click.option("--backend-version", default="", metavar="VERSION", help="Version of the engine.")
@click.option(
    "--backend-parameter",
    "-p",
    "parameters",
    multiple=True,
    metavar="ARG",
    help="For the engine; may be repeated.",
)
@click.option(
    "--env", "env", multiple=True, metavar="KEY=VALUE", help="Variable of the engine; may be repeated."
)
@click.option("--wait/--no-wait", default=True, help="Wait until it runs, or return at once.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=3600,
    show_default=True,
    help="Seconds to wait; 0 has no end.",
)
@server_options
@json_option
def command(
    path: str, name: str | None, env: tuple[str, ...], wait: bool, timeout: float, target: Target, as_json: bool,
    **spec: Any,
) -> int:  # fmt: skip
    """Serve a model.

    PATH is a file or directory on the worker: with a server on this machine it may be relative, for another one give the whole path.
    Waits until all copies answer, and shows each phase. Ctrl-C ends the waiting, not the deployment.
    """
    connection = target.connection(changes=True)
    where = _absolute(path, connection)
    wanted = _model(where, name or default_name(where), env, **spec)
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


def _absolute(path: str, connection: Connection) -> str:
    """Return the path as the worker sees it; a local one is looked at here, where the answer is quickest."""
    if not connection.local:
        if not path.startswith("/") and not re.match(r"^[A-Za-z]:[\\/]", path):
            raise InvalidInput(
                f"{path} is relative, and {connection.url} is another machine; give the whole path on its worker"
            )
        return path
    if not path.strip():
        raise InvalidInput("the path is empty; name a model file or directory")
    whole = Path(path).expanduser().absolute()
    try:
        whole.stat()
    except PermissionError:
        # The worker may be another user and see it.
        return str(whole)
    except OSError as error:
        raise NotFound(f"{whole} is not there: {error.strerror}") from error
    return str(whole)


def default_name(path: str) -> str:
    """Return a name made of the file's: ``/m/Tiny Chat.Q4_K_M.gguf`` gives ``Tiny-Chat.Q4_K_M``."""
    pure = PurePath(path)
    stem = pure.stem if pure.suffix.lower() in (".gguf", ".safetensors") else pure.name
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:128].rstrip("-._")
    if not name:
        raise InvalidInput(f"{path} gives no name; choose one with --name")
    return name


def _model(
    path: str, name: str, env: tuple[str, ...], *, parameters: tuple[str, ...], **spec: Any
) -> ModelCreate:
    from pydantic import ValidationError

    from gpustack.schemas import ModelCreate

    pairs = dict(_pair(each) for each in env)
    try:
        return ModelCreate(name=name, local_path=path, backend_parameters=list(parameters), env=pairs, **spec)
    except ValidationError as error:
        problem = error.errors()[0]
        if problem["loc"] == ("name",):
            raise InvalidInput(
                f"--name {name!r}: a name is made of letters, digits and . _ : / - with a letter or digit at both "
                "ends, 128 characters at most"
            ) from error
        field = str(problem["loc"][0]).replace("_", "-") if problem["loc"] else "the model"
        raise InvalidInput(f"{field}: {problem['msg'].removeprefix('Value error, ')}") from error


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise InvalidInput(f"--env {text!r} is not KEY=VALUE")
    return key, value


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

    model = await client.models.create(wanted)
    created.append(model)
    if not wait or wanted.replicas == 0:
        if as_json:
            await _emit(client, model)
        else:
            click.echo(f"Deploying {model.name}; `gpustack ps` shows how far it is.")
        return 0
    if not as_json:
        click.echo(f"Deploying {model.name} from {clean(model.local_path)}")
    failure = ""
    with progress(quiet=as_json) as view:
        failure = await _wait(client, model, view, timeout)
    if as_json:
        await _emit(client, model)
    if failure:
        raise GPUStackError(failure)
    if not as_json:
        _say_next(client, await client.models.get(model.id))
    return 0


async def _emit(client: Client, model: ModelPublic) -> None:
    """Print the model as it is now, with its instances; it may be gone."""
    instances: list[ModelInstancePublic] = []
    with suppress(NotFound):
        model = await client.models.get(model.id)
        instances = await client.instances.list_all(model_id=model.id)
    emit_json(
        {**model.model_dump(mode="json"), "instances": [each.model_dump(mode="json") for each in instances]}
    )


async def _wait(client: Client, model: ModelPublic, view: Progress, timeout: float | None) -> str:
    """Wait for the rollout and show it; return why it failed, empty when it did not."""
    from gpustack.cli.rollout import Rollout

    rollout = Rollout(replicas=model.replicas)
    began = time.monotonic()
    queue: asyncio.Queue[Event | GPUStackError] = asyncio.Queue()
    reader = asyncio.create_task(_read(client, model.id, queue), name="deploy: watch")
    try:
        while True:
            now = time.monotonic()
            if (ended := rollout.outcome(now)) is not None:
                return _failure(model, rollout, *ended)
            if timeout is not None and now - began >= timeout:
                return _too_late(model, rollout, timeout)
            try:
                event = await asyncio.wait_for(queue.get(), _TICK)
            except TimeoutError:
                continue
            if isinstance(event, GPUStackError):
                raise event
            if (step := rollout.take(event, time.monotonic())) is not None:
                view.show(step)
    finally:
        reader.cancel()
        with suppress(asyncio.CancelledError):
            await reader


async def _read(client: Client, number: int, queue: asyncio.Queue[Event | GPUStackError]) -> None:
    """Feed the queue; a watch that cannot go on is the last thing in it."""
    try:
        watch = client.watch("/v2/model-instances", {"model_id": number}, patience=_SERVER_PATIENCE)
        async with aclosing(watch) as events:
            async for event in events:
                queue.put_nowait(event)
    except GPUStackError as error:
        queue.put_nowait(error)


def _failure(
    model: ModelPublic, rollout: Rollout, outcome: Outcome, instance: ModelInstancePublic | None
) -> str:
    from gpustack.cli.rollout import Outcome
    from gpustack.lifecycle.engine import will_retry

    if outcome is Outcome.RUNNING:
        return ""
    if instance is None:
        return f"{model.name} was deleted meanwhile"
    message = clean(instance.state_message, keep="\n\t")
    if outcome is Outcome.QUEUED:
        return (
            f"{model.name} fits nowhere now: {message}\nIt stays queued and starts when there is room; "
            f"`gpustack rm {model.name}` takes it out."
        )
    tail = f"`gpustack logs {instance.name}` shows more, `gpustack rm {model.name}` removes it."
    if will_retry(instance.state_message):
        tail = f"GPUStack goes on trying; {tail}"
    return f"{instance.name}: {message}\n{tail}"


def _too_late(model: ModelPublic, rollout: Rollout, timeout: float) -> str:
    states = "; ".join(
        f"{each.name} is {each.state}"
        + (f": {clean(each.state_message, keep=chr(10))}" if each.state_message else "")
        for each in rollout.instances.values()
    )
    return (
        f"{model.name}: {rollout.running} of {model.replicas} running after {timeout:.0f} s"
        f"{' (' + states + ')' if states else ''}\nIt goes on being deployed; `gpustack ps` shows it."
    )


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
