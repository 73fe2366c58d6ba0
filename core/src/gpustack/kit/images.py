"""Names of container images."""

from __future__ import annotations


def with_registry(image: str, registry: str) -> str:
    """Return ``image`` with ``registry`` in front, unless it names one: ``acme/app:1`` becomes ``docker.io/acme/app:1``."""
    first, slash, _ = image.partition("/")
    named = bool(slash) and ("." in first or ":" in first or first == "localhost")
    return image if named or not registry else f"{registry}/{image}"


def own_image(*, override: str, repository: str, version: str, registry: str) -> str:
    """Return the image of GPUStack itself: the one that is named, or that of ``version`` in the repository."""
    return with_registry(override or f"{repository}:{version}", registry)
