"""The options of ``deploy`` and ``update`` that choose GPUs by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from gpustack.cli import complete
from gpustack.cli.usage import WrongUsage

Command = TypeVar("Command", bound=Callable[..., Any])


def gpu_options(command: Command) -> Command:
    """Add the options; their values come as keywords that :func:`selection` takes out."""
    gpu = click.option(
        "--gpu",
        "gpu_ids",
        multiple=True,
        metavar="ID",
        shell_complete=complete.gpus,
        help='Run on this GPU of `gpustack gpus` and no other but those named so; may be repeated. With update, "" alone '
        "allows all again.",
    )
    each = click.option(
        "--gpus-per-replica",
        type=click.IntRange(0, 4096),
        metavar="N",
        help="How many of them each copy gets; 0 is its share.  [default: 0]",
    )
    return gpu(each(command))


def selection(given: dict[str, Any], *, changes: bool = False) -> dict[str, Any]:
    """Take the values of these options out of ``given``, and return them as a field of a model, or of a change of one."""
    gpu_ids, each = given.pop("gpu_ids"), given.pop("gpus_per_replica")
    if changes and gpu_ids == ("",):
        if each is not None:
            raise WrongUsage('--gpus-per-replica does not go with --gpu "", which chooses no GPUs')
        return {"gpu_selector": None}
    if not gpu_ids and each is not None and not changes:
        raise WrongUsage("--gpus-per-replica goes with --gpu, which names the GPUs; see `gpustack gpus`")
    chosen: dict[str, Any] = {"gpu_ids": list(gpu_ids)} if gpu_ids else {}
    if each is not None:
        chosen["gpus_per_replica"] = each or None
    return {"gpu_selector": chosen} if chosen else {}
