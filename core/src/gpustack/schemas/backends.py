"""Inference backends, as the installed plugins describe them."""

from __future__ import annotations

from gpustack.schemas.common import Output


class InferenceBackendPublic(Output):
    """One backend. ``installed_versions`` are those found on workers, by worker name."""

    id: int
    backend_name: str
    default_version: str
    #: The plugin it comes from, with that plugin's distribution and version.
    plugin: str
    distribution: str
    distribution_version: str
    installed_versions: dict[str, list[str]] = {}
