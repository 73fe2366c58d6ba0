"""``gpustack update``."""

from __future__ import annotations

from typing import Any

import click

from gpustack.cli import complete
from gpustack.cli.by_hand import gpu_options, selection
from gpustack.cli.changing import Change, wait_options
from gpustack.cli.names import labels, variables
from gpustack.cli.serving import serving_options, split
from gpustack.cli.target import Target, json_option, server_options

_ROLLOUT = ("max_surge", "max_unavailable", "drain_seconds")


@click.command("update")
@click.argument("model", shell_complete=complete.models)
@click.option("--replicas", type=click.IntRange(0, 1000), help="Copies to run.")
@click.option("--backend", metavar="NAME", help='Backend; "" lets the model choose.')
@click.option("--backend-version", metavar="VERSION", help='Version of the engine; "" is the default one.')
@click.option(
    "--backend-package",
    "packages",
    multiple=True,
    metavar="REQUIREMENT",
    help='Package beside the engine, in place of all that were named; may be repeated, "" names none.',
)
@click.option(
    "--backend-parameter",
    "--parameter",
    "-p",
    "parameters",
    multiple=True,
    metavar="ARG",
    help='For the engine; may be repeated. Takes the place of all it had; "" alone leaves none.',
)
@click.option(
    "--run-command",
    metavar="COMMAND",
    help="The engine's command line in place of the backend's, as in 'serve --port {{port}} {{model_path}}'; \"\" is the backend's own.",
)
@click.option(
    "--image-name",
    metavar="IMAGE",
    help="Image of the engine's container, in place of the backend's; \"\" is the backend's own.",
)
@click.option(
    "--env", "env", multiple=True, metavar="KEY=VALUE", help="Set a variable of the engine; may be repeated."
)
@click.option(
    "--unset-env", multiple=True, metavar="KEY", help="Take a variable of the engine away; may be repeated."
)
@click.option("--description", metavar="TEXT", help="What it is for.")
@click.option("--restart-on-error/--no-restart-on-error", default=None, help="Start a failed engine again.")
@click.option(
    "--max-surge", type=click.IntRange(0, 1000), help="Copies beyond those wanted, while exchanging."
)
@click.option("--max-unavailable", type=click.IntRange(0, 1000), help="Copies that may be missing meanwhile.")
@click.option(
    "--drain-seconds", type=click.IntRange(0, 86400), help="Time for requests in flight on a copy that ends."
)
@gpu_options
@click.option(
    "--worker-selector",
    "selector",
    multiple=True,
    metavar="KEY=VALUE",
    help="Label that its workers must have; KEY- takes one away. May be repeated.",
)
@serving_options
@click.option(
    "--fixed-replicas", is_flag=True, help="Let the number of copies follow what is asked no longer."
)
@wait_options
@server_options
@json_option
def command(
    model: str, parameters: tuple[str, ...], packages: tuple[str, ...], env: tuple[str, ...], unset_env: tuple[str, ...],
    selector: tuple[str, ...], wait: bool, timeout: float, target: Target, as_json: bool, fixed_replicas: bool, **given: Any,
) -> int:  # fmt: skip
    """Change how a model is served.

    What is not named stays. Copies whose engines have to start anew are exchanged one after the other, so that
    requests are answered all the time. Ctrl-C ends the waiting, not the change.
    """
    serving = split(given) | selection(given, changes=True)
    if fixed_replicas:
        if {"min_replicas", "max_replicas"} & serving.keys():
            raise click.UsageError("--fixed-replicas does not go with --min-replicas or --max-replicas")
        serving |= {"min_replicas": None, "max_replicas": None}
    named = {name: value for name, value in given.items() if value is not None} | serving
    rollout = {name: named.pop(name) for name in _ROLLOUT if name in named}
    if parameters:
        named["backend_parameters"] = [] if parameters == ("",) else list(parameters)
    if packages:
        named["backend_packages"] = [] if packages == ("",) else list(packages)
    if selector:
        named["worker_selector"] = labels("--worker-selector", selector)
    pairs = variables(env)
    if not (named or rollout or pairs or unset_env):
        raise click.UsageError("nothing is to change; name what is, such as --replicas 2")
    change = Change(
        model=model, fields=named, rollout=rollout, env=pairs, unset_env=unset_env, wait=wait,
        timeout=timeout, as_json=as_json,
    )  # fmt: skip
    return change.run(target)
