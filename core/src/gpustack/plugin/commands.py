"""Command lines that users describe, such as ``serve --port {{port}} {{model_path}}``.

    argv = described(request)

They are split as a shell would do it; what a placeholder stands for is one word, or part of one.
"""

from __future__ import annotations

from collections.abc import Mapping

from gpustack.kit.command_template import PLACEHOLDERS, filled, uses, words_of
from gpustack.plugin.errors import Refused
from gpustack.plugin.values import LaunchRequest

__all__ = ["PLACEHOLDERS", "described", "fill", "meanings"]


def meanings(request: LaunchRequest) -> Mapping[str, str]:
    """Return what each placeholder stands for."""
    return {
        "model_path": request.model_path,
        "model_name": request.model_name,
        "port": str(request.port),
        "host": request.host,
        "worker_ip": request.host,
        "gpu_count": str(len(request.devices)),
        # It is shown no other GPUs than its own.
        "gpu_ids": ",".join(str(number) for number in range(len(request.devices))),
        "version": request.version,
        "instance_name": request.instance_name,
        "command": request.command,
    }


def fill(request: LaunchRequest, *words: str) -> tuple[str, ...]:
    """Return ``words`` with the placeholders that are known filled in; of others they may have any."""
    return filled(words, meanings(request))


def described(request: LaunchRequest) -> tuple[str, ...]:
    """Return the command line of ``request.run_command``, without the parameters.

    Its program is ``request.command``, where the worker found it, unless the placeholder ``{{command}}`` says where that
    goes. Raises Refused with one line for what is no command line.
    """
    try:
        words = words_of(request.run_command)
    except ValueError as error:
        raise Refused(f"run_command: {error}") from None
    if not uses(request.run_command, "command"):
        words[0] = "{{command}}"
    return fill(request, *words)
