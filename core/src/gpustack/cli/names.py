"""Finds what a user names, and says what was probably meant when there is none."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from gpustack.cli.usage import WrongUsage
from gpustack.kit.errors import InvalidInput, NotFound
from gpustack.kit.text import shorten

if TYPE_CHECKING:
    from pydantic import ValidationError

    from gpustack.client import Client
    from gpustack.schemas import ModelInstancePublic, ModelPublic


async def model_named(client: Client, name: str) -> ModelPublic:
    """Return the model called ``name``. Raises NotFound with the nearest names."""
    # The search finds parts of names too, and the server may take it in any case.
    for model in await client.models.list_all(search=name):
        if model.name == name:
            return model
    known = [model.name for model in await client.models.list_all()]
    raise NotFound(f"there is no model {shorten(name, 160)!r}{meant(name, known)}; see `gpustack ls`")


def state_of(instance: ModelInstancePublic) -> str:
    """Return where an instance is; one that drains runs, but takes nothing new."""
    return "draining" if instance.draining_since is not None else str(instance.state)


def workers_of(instance: ModelInstancePublic) -> str:
    """Return the workers that an instance is on, the leader's first of several; ``-`` for none."""
    return ", ".join(each.worker_name for each in instance.members) or instance.worker_name or "-"


def meant(name: str, known: list[str]) -> str:
    """Return a question that goes on after "there is no …", empty when nothing is near."""
    lowered = {each.lower(): each for each in known}
    near = [lowered[each] for each in difflib.get_close_matches(name.lower(), lowered, n=3, cutoff=0.6)]
    return f" (did you mean {' or '.join(near)}?)" if near else ""


def variables(pairs: tuple[str, ...]) -> dict[str, str]:
    """Return what ``--env KEY=VALUE`` says, each time it was given."""
    found: dict[str, str] = {}
    for text in pairs:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise WrongUsage(f"--env {shorten(text, 80)!r} is not KEY=VALUE")
        found[key] = value
    return found


def labels(flag: str, texts: tuple[str, ...]) -> dict[str, str | None]:
    """Return what ``KEY=VALUE`` sets and ``KEY-`` takes away, which is None. ``flag`` is where they were given."""
    found: dict[str, str | None] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals and key.endswith("-"):
            found[key[:-1]] = None
        elif equals:
            found[key] = value
        if "" in found or not (equals or key.endswith("-")):
            raise WrongUsage(
                f"{flag} {shorten(text, 80)!r} is neither KEY=VALUE nor KEY-, which takes KEY away".lstrip()
            )
    return found


def invalid(error: ValidationError) -> InvalidInput:
    """Return what is wrong with a description in one line, by the name of its option."""
    problem = error.errors()[0]
    if problem["loc"][:1] == ("gpu_selector",):
        return WrongUsage(f"--gpu: {problem['msg'].removeprefix('Value error, ')}")
    field = str(problem["loc"][-1]).replace("_", "-") if problem["loc"] else "the model"
    return WrongUsage(f"{field}: {problem['msg'].removeprefix('Value error, ')}")
