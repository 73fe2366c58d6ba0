"""The options of the gateways: ``--gateway-*``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict

from gpustack.plugin import Option

#: Those that need nobody's plugin.
_MODES = ("auto", "embedded", "disabled")
_LATER = ("in-cluster", "external")
#: As extensions are called.
_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?")


def _mode(text: str) -> str:
    if text in _LATER:
        raise ValueError(f"Kubernetes is not part of this version yet; give one of {', '.join(_MODES)}")
    if not _NAME.fullmatch(text):
        raise ValueError(f"give one of {', '.join(_MODES)}, or the name of another gateway that is installed")
    return text


def _kubeconfig(text: str) -> str:
    """Check that the file is what ``kubectl`` reads; an empty name is none."""
    if not text:
        return text
    from yaml import safe_load

    try:
        path = Path(text).expanduser().absolute()
        content: Any = safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"it cannot be read: {error.strerror}") from error
    except Exception as error:  # whatever it is that is no YAML, or a home that is none
        raise ValueError("it is no kubeconfig; give the path of one") from error
    missing = [
        key
        for key in ("clusters", "contexts", "users")
        if not isinstance(content, dict) or key not in content
    ]
    if missing:
        raise ValueError(f"it is no kubeconfig: {', '.join(missing)} is missing")
    return str(path)


class GatewaySettings(BaseModel):
    """What all gateways share."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gateway_mode: Annotated[
        str,
        AfterValidator(_mode),
        Option(
            group="Common",
            value="MODE",
            help="Gateway running mode. Options: embedded, in-cluster, external, disabled, auto (default), or the name of a "
            "gateway that a plugin brings. auto is embedded, in Kubernetes too; disabled has the server process carry the "
            "requests. in-cluster and external are not part of this version yet.",
        ),
    ] = "auto"
    gateway_kubeconfig: Annotated[
        str,
        AfterValidator(_kubeconfig),
        Option(
            group="Common",
            value="PATH",
            later="Kubernetes",
            refused=True,
            help="Path to the kubeconfig file for gateway. Only useful for external gateway-mode.",
        ),
    ] = ""
