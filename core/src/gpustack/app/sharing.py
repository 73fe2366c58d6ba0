"""What gateway and server read alike out of the settings: who may share answers, the certificate, and what
clients may take."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpustack.dataplane.cors import CorsPolicy
from gpustack.dataplane.http import Limits


def cors_of(settings: Mapping[str, Any]) -> CorsPolicy | None:
    """Return the policy for pages of other origins; None where nothing is shared."""
    if not settings["enable_cors"]:
        return None
    return CorsPolicy(
        allow_origins=tuple(settings["allow_origins"]),
        allow_methods=tuple(settings["allow_methods"]),
        allow_headers=tuple(settings["allow_headers"]),
        allow_credentials=settings["allow_credentials"],
    )


def limits_of(settings: Mapping[str, Any]) -> Limits:
    """Return what clients may take, and how long; the same with a gateway and without."""
    return Limits(
        trusted_proxies=tuple(settings["trusted_proxies"]),
        head_seconds=settings["gateway_header_timeout"],
        body_seconds=settings["gateway_body_timeout"],
        keep_alive_seconds=settings["gateway_keep_alive_timeout"],
    )


def tls_of(settings: Mapping[str, Any]) -> tuple[Path, Path] | None:
    """Return the files of certificate and key; None without TLS."""
    if not (settings["ssl_certfile"] and settings["ssl_keyfile"]):
        return None
    return Path(settings["ssl_certfile"]), Path(settings["ssl_keyfile"])
