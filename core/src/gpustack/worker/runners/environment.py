"""The environment of an engine, and the marks in it by which the engine is found again."""

from __future__ import annotations

import os
from collections.abc import Mapping

from gpustack.worker.environment import DEVICES, clean_environment

#: Tells whose process it is, also when the record of its start was never completed.
INSTANCE_MARKER = "GPUSTACK_INSTANCE_ID"
#: The path of its record: two installations on one machine may number their instances alike.
RECORD_MARKER = "GPUSTACK_INSTANCE_RECORD"
_LIBRARIES = "LD_LIBRARY_PATH"


def engine_environment(*layers: Mapping[str, str], instance_id: int, record: str) -> dict[str, str]:
    """Return the environment of an engine; of ``layers`` a later one wins, and our markers win over all.

    Where libraries are looked for adds up: first where the last layer says, last where the worker has them.
    """
    env = clean_environment(DEVICES)
    for layer in layers:
        before = env.get(_LIBRARIES)
        env.update(layer)
        if before and layer.get(_LIBRARIES):
            env[_LIBRARIES] = os.pathsep.join((layer[_LIBRARIES], before))
    env[INSTANCE_MARKER] = str(instance_id)
    env[RECORD_MARKER] = record
    return env
