"""Waiting until a model runs as it was described, for ``deploy``, ``scale`` and ``update``."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from gpustack.cli.names import state_of
from gpustack.cli.output import clean, emit_json
from gpustack.kit.errors import GPUStackError, NotFound

if TYPE_CHECKING:
    from gpustack.cli.progress import Progress
    from gpustack.cli.rollout import Outcome, Rollout, Step
    from gpustack.client import Client
    from gpustack.schemas import Event, ModelInstancePublic, ModelPublic

#: Seconds without the server after which the waiting is given up.
_SERVER_PATIENCE = 60.0
_TICK = 0.25


async def emit_model(client: Client, model: ModelPublic) -> None:
    """Print the model as it is now, with its instances; it may be gone."""
    instances: list[ModelInstancePublic] = []
    with suppress(NotFound):
        model = await client.models.get(model.id)
        instances = await client.instances.list_all(model_id=model.id)
    emit_json(
        {**model.model_dump(mode="json"), "instances": [each.model_dump(mode="json") for each in instances]}
    )


async def wait_for(client: Client, model: ModelPublic, view: Progress, timeout: float | None) -> str:
    """Wait for the rollout and show it; return why it failed, empty when it did not."""
    from gpustack.cli.rollout import Outcome, Rollout

    rollout = Rollout(replicas=model.replicas, digest=model.spec_digest)
    began = time.monotonic()
    queue: asyncio.Queue[Event | GPUStackError] = asyncio.Queue()
    reader = asyncio.create_task(_read(client, model.id, queue), name="waiting: watch")
    try:
        while True:
            now = time.monotonic()
            if (ended := rollout.outcome(now)) is not None:
                if ended[0] is not Outcome.DELETED or await _is_gone(client, model):
                    return _failure(model, rollout, *ended)
                rollout.expect_new()
            if timeout is not None and now - began >= timeout:
                return _too_late(model, rollout, timeout)
            try:
                async with asyncio.timeout(_TICK):
                    event = await queue.get()
            except TimeoutError:
                continue
            if isinstance(event, GPUStackError):
                raise event
            if (step := rollout.take(event, time.monotonic())) is not None:
                view.show(_without_the_end(step, rollout))
    finally:
        reader.cancel()
        with suppress(asyncio.CancelledError):
            await reader


def _without_the_end(step: Step, rollout: Rollout) -> Step:
    """Leave the message out of the step that ends the waiting: it is what the command fails with."""
    from gpustack.cli.rollout import Outcome

    match rollout.outcome(time.monotonic()):
        case (Outcome.FAILED, instance) if instance is not None and instance.name == step.instance:
            return replace(step, message="")
    return step


async def _is_gone(client: Client, model: ModelPublic) -> bool:
    """Tell whether the model is no more; all its instances may be, between the old ones and the new."""
    try:
        await client.models.get(model.id)
    except NotFound:
        return True
    return False


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
    tail = f"`gpustack rm {model.name}` removes it."
    if rollout.has_log(instance):
        tail = f"`gpustack logs {instance.name}` shows more, {tail}"
    if will_retry(instance.state_message):
        tail = f"GPUStack goes on trying; {tail}"
    return f"{instance.name}: {message}\n{tail}"


def _too_late(model: ModelPublic, rollout: Rollout, timeout: float) -> str:
    states = "; ".join(
        f"{each.name} is {state_of(each)}"
        + (f": {clean(each.state_message, keep=chr(10))}" if each.state_message else "")
        for each in rollout.instances.values()
    )
    return (
        f"{model.name}: {rollout.running} of {model.replicas} running after {timeout:.0f} s"
        f"{' (' + states + ')' if states else ''}\nIt goes on; `gpustack ps` shows how far it is."
    )
