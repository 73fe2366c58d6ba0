"""Filters for what the backends say of the model on a worker."""

from __future__ import annotations

from gpustack.scheduling.request import Request
from gpustack.scheduling.snapshot import Worker


def backend_installed(worker: Worker, request: Request) -> str | None:
    """Pass workers where the named backend is installed, or any that offers a way."""
    named = {request.backend} if request.backend else None
    wanted = named or {way.backend for way in request.offer(worker).ways}
    if not wanted or wanted & worker.backends:
        return None
    return f"has not the backend {' or '.join(sorted(wanted))} installed"


def platform_supported(worker: Worker, request: Request) -> str | None:
    """Pass workers for whose platform some backend has an engine."""
    offer = request.offer(worker)
    if offer.ways or not offer.platform_refusals or offer.refusals:
        return None
    return "; ".join(offer.platform_refusals)


def accepted(worker: Worker, request: Request) -> str | None:
    """Pass workers where some backend agrees to serve the model."""
    offer = request.offer(worker)
    if any(way.backend in worker.backends for way in offer.ways):
        return None
    return "; ".join((*offer.refusals, *offer.platform_refusals)) or "has no backend that serves the model"
