"""Changes a deployed model and waits until it runs so, for ``scale`` and ``update``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gpustack.cli.output import note
from gpustack.cli.target import Target
from gpustack.cli.usage import Finite
from gpustack.kit.errors import GPUStackError, InvalidInput

if TYPE_CHECKING:
    from gpustack.client import Client
    from gpustack.schemas import ModelPatch, ModelPublic

Command = TypeVar("Command", bound=Callable[..., Any])


def wait_options(command: Command) -> Command:
    """Add ``--wait/--no-wait`` and ``--timeout``, as ``deploy`` has them."""
    timeout = click.option(
        "--timeout",
        type=Finite(min=0),
        default=3600,
        show_default=True,
        help="Seconds to wait; 0 has no end.",
    )
    wait = click.option("--wait/--no-wait", default=True, help="Wait until it runs so, or return at once.")
    return wait(timeout(command))


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What of a model is to be another way."""

    model: str
    #: New values of the description.
    fields: Mapping[str, Any] = field(default_factory=dict)
    #: New values within ``rollout``.
    rollout: Mapping[str, Any] = field(default_factory=dict)
    #: Variables to set, and names of those to take away.
    env: Mapping[str, str] = field(default_factory=dict)
    unset_env: tuple[str, ...] = ()
    wait: bool = True
    timeout: float = 0.0
    as_json: bool = False

    def run(self, target: Target) -> int:
        """Do it, tell the user, and return the exit status."""
        try:
            return target.ask(self._run, changes=True)
        except KeyboardInterrupt:
            note(f"\nThe change of {self.model} goes on if it had begun; `gpustack ps` shows it.")
            raise

    async def _run(self, client: Client) -> int:
        from gpustack.cli.names import model_named
        from gpustack.cli.waiting import emit_model

        before = await model_named(client, self.model)
        after = await client.models.patch(before.id, self._changes(before))
        failure = ""
        if not self.as_json:
            click.echo(_said(before, after))
        if self.wait:
            failure = await self._wait(client, after)
        if self.as_json:
            await emit_model(client, after)
        if failure:
            raise GPUStackError(failure)
        if not self.as_json and self.wait:
            click.echo(f"{after.name} runs {after.replicas} of {after.replicas}." if after.replicas else
                       f"{after.name} runs no copy any more.")  # fmt: skip
        return 0

    async def _wait(self, client: Client, model: ModelPublic) -> str:
        from gpustack.cli.progress import progress
        from gpustack.cli.waiting import wait_for

        with progress(quiet=self.as_json) as view:
            return await wait_for(client, model, view, self.timeout or None)

    def _changes(self, model: ModelPublic) -> ModelPatch:
        """Return what to ask for, as far as can be told possible for what the model was a moment ago."""
        from pydantic import ValidationError

        from gpustack.cli.names import invalid
        from gpustack.schemas import ModelPatch

        if missing := [name for name in self.unset_env if name not in model.env]:
            raise InvalidInput(f"--unset-env {missing[0]}: {model.name} has no such variable")
        named: dict[str, Any] = dict(self.fields)
        if self.rollout:
            named["rollout"] = self.rollout
        if self.env or self.unset_env:
            named["env"] = {**dict.fromkeys(self.unset_env), **self.env}
        try:
            changes = ModelPatch.model_validate(named)
            changes.applied_to(model)
        except ValidationError as error:
            raise invalid(error) from error
        return changes


def _said(before: ModelPublic, after: ModelPublic) -> str:
    """Return what follows from the change."""
    lines = []
    if after.spec_digest != before.spec_digest:
        lines.append(f"Updating {after.name}: its copies are exchanged one after the other.")
    if after.replicas != before.replicas:
        less = "; requests in flight are finished first" if after.replicas < before.replicas else ""
        lines.append(f"Scaling {after.name} from {before.replicas} to {after.replicas}{less}.")
    return "\n".join(lines) or f"{after.name} needs no other copies for that."
