"""The environment of an engine, and the marks in it by which the engine is found again."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from gpustack.worker.environment import DEVICES, clean_environment

#: Tells whose process it is, also when the record of its start was never completed.
INSTANCE_MARKER = "GPUSTACK_INSTANCE_ID"
#: The path of its record: two installations on one machine may number their instances alike.
RECORD_MARKER = "GPUSTACK_INSTANCE_RECORD"
_LIBRARIES = "LD_LIBRARY_PATH"


#: What is named after a vendor of devices may be the key to that vendor's services.
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)


def engine_environment(*layers: Mapping[str, str], instance_id: int, record: str) -> dict[str, str]:
    """Return the environment of an engine; of ``layers`` a later one wins, and our markers win over all.

    Where libraries are looked for adds up: first where the last layer says, last where the worker has them.
    """
    env = {name: value for name, value in clean_environment(DEVICES).items() if not _SECRET.search(name)}
    for layer in layers:
        before = env.get(_LIBRARIES)
        env.update(layer)
        if before and layer.get(_LIBRARIES):
            env[_LIBRARIES] = os.pathsep.join((layer[_LIBRARIES], before))
    env[INSTANCE_MARKER] = str(instance_id)
    env[RECORD_MARKER] = record
    return env
