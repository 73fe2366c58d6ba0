"""LoRA adapters, as PEFT writes them: what ``adapter_config.json`` says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gpustack.kit.errors import InvalidInput, Unavailable
from gpustack.kit.threads import StillHangingError, call_aside
from gpustack.plugin import Adapter
from gpustack.worker.facts.json_files import read_json, section
from gpustack.worker.facts.reader import whole
from gpustack.worker.facts.resolve import os_trouble

_CONFIG = "adapter_config.json"


def read_adapter(path: str) -> Adapter:
    """Return what the files of the adapter in the folder ``path`` say. Raises InvalidInput with one line."""
    try:
        folder = Path(path)
        folder.stat()
        config = read_json(folder / _CONFIG)
    except OSError as error:
        raise InvalidInput(os_trouble(error.filename or path, error)) from error
    if not config:
        raise InvalidInput(f"{path} is no LoRA adapter: it has no {_CONFIG}; name the folder that PEFT wrote")
    ranks = [whole(config.get("r")), *map(whole, section(config, "rank_pattern").values())]
    if not max(ranks):
        raise InvalidInput(f"{folder / _CONFIG} names no rank (r); copy or download the adapter again")
    return Adapter(path=path, rank=max(ranks))


async def read_adapters_within(paths: Sequence[str], *, seconds: float = 30.0) -> tuple[Adapter, ...]:
    """Read each in a thread; Unavailable when that takes longer than ``seconds``."""
    if not paths:
        return ()
    try:
        return await call_aside(
            f"adapters {', '.join(paths)}", lambda: tuple(map(read_adapter, paths)), timeout=seconds
        )
    except (TimeoutError, StillHangingError):
        raise Unavailable(
            f"{paths[0]} could not be read within {seconds:.0f} s; is it on a network file system that has stalled?",
            retry_after=seconds,
        ) from None
