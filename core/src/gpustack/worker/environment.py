"""What of our own environment the programs that we start may see: small, clean, and without our secrets."""

from __future__ import annotations

import os
from collections.abc import Mapping

#: Who and where it is, and how to reach others.
_KEPT = frozenset(
    (
        *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "LD_LIBRARY_PATH"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
        # Windows programs do not start without these.
        *("SYSTEMROOT", "COMSPEC", "PATHEXT", "TEMP", "TMP", "APPDATA", "LOCALAPPDATA", "USERPROFILE"),
        "PROGRAMDATA",
    )
)
#: What accelerators are configured with.
DEVICES = ("NVIDIA_", "CUDA_", "HIP_", "ROCR_", "ASCEND_")
#: Where packages come from.
PACKAGES = ("PIP_", "PIPX_", "UV_", "XDG_", "NETRC")


def clean_environment(families: tuple[str, ...], ours: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return what a program may see of our environment: the usual, and all that begins like ``families``.

    Nothing of an active Python environment is in it.
    """
    prefixes = ("LC_", *families)
    return {
        name: value
        for name, value in (os.environ if ours is None else ours).items()
        if (upper := name.upper()) in _KEPT or upper.startswith(prefixes) or upper.endswith("_PROXY")
    }
