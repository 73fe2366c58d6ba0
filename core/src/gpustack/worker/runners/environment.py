"""The environment of an engine: small and clean, without anything that is ours."""

from __future__ import annotations

import os
from collections.abc import Mapping

#: Tells whose process it is, also when the record of its start was never completed.
INSTANCE_MARKER = "GPUSTACK_INSTANCE_ID"
#: The path of its record: two installations on one machine may number their instances alike.
RECORD_MARKER = "GPUSTACK_INSTANCE_RECORD"

_KEPT = frozenset(
    {
        "ALL_PROXY",
        "CURL_CA_BUNDLE",
        "HOME",
        "HTTPS_PROXY",
        "HTTP_PROXY",
        "LANG",
        "LANGUAGE",
        "LD_LIBRARY_PATH",
        "LOGNAME",
        "NO_PROXY",
        "PATH",
        "REQUESTS_CA_BUNDLE",
        "SHELL",
        "SSL_CERT_DIR",
        "SSL_CERT_FILE",
        "TMPDIR",
        "TZ",
        "USER",
        # Windows programs do not start without these.
        "APPDATA",
        "LOCALAPPDATA",
        "SYSTEMROOT",
        "TEMP",
        "TMP",
        "USERPROFILE",
    }
)
_KEPT_PREFIXES = ("LC_", "NVIDIA_", "CUDA_", "HIP_", "ROCR_", "ASCEND_")


def clean_environment(ours: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return what of our own environment an engine may see."""
    source = os.environ if ours is None else ours
    return {
        name: value
        for name, value in source.items()
        if name.upper() in _KEPT or name.upper().startswith(_KEPT_PREFIXES)
    }


def engine_environment(
    *layers: Mapping[str, str], instance_id: int, record: str, ours: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the environment of an engine; of ``layers`` a later one wins, and our markers win over all."""
    env = clean_environment(ours)
    for layer in layers:
        env.update(layer)
    env[INSTANCE_MARKER] = str(instance_id)
    env[RECORD_MARKER] = record
    return env
